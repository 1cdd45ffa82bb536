package entity

import "concord/fsm/schema"

// GroupsLevel is the cluster level from which on all members know the tables of this file, and plugins of a group.
const GroupsLevel uint32 = 3

// ConsumerGroups is the name of the groups' table, ConsumerGroupConsumers that of who is in them.
const (
	ConsumerGroups         = "consumer_groups"
	ConsumerGroupConsumers = "consumer_group_consumers"
)

// ConsumerGroup is a set of consumers that plugins can be configured for (Kong Enterprise).
type ConsumerGroup struct {
	ID        string   `json:"id"`
	CreatedAt float64  `json:"created_at"`
	UpdatedAt float64  `json:"updated_at"`
	Name      string   `json:"name"`
	Tags      []string `json:"tags"`
}

var consumerGroups = Def{Table: 23, Since: GroupsLevel, New: func() any { return new(ConsumerGroup) }, Schema: &schema.Schema{
	Name:        ConsumerGroups,
	EndpointKey: "name",
	Fields: []schema.Field{
		schema.ID(),
		schema.CreatedAt(),
		schema.UpdatedAt(),
		{Name: "name", Type: schema.String, Required: true, Unique: true},
		schema.Tags(),
	},
}}

// ConsumerGroupConsumer puts a consumer into a group.
type ConsumerGroupConsumer struct {
	ID        string  `json:"id"`
	CreatedAt float64 `json:"created_at"`
	UpdatedAt float64 `json:"updated_at"`
	Group     Ref     `json:"consumer_group"`
	Consumer  Ref     `json:"consumer"`
}

// Kong's rows have no id: the pair is their key.
var consumerGroupConsumers = Def{Table: 24, Since: GroupsLevel, New: func() any { return new(ConsumerGroupConsumer) }, Endpoints: NoEndpoints, Schema: &schema.Schema{
	Name:   ConsumerGroupConsumers,
	Unique: [][]string{{"consumer_group", "consumer"}},
	Fields: []schema.Field{
		schema.ID(),
		schema.CreatedAt(),
		schema.UpdatedAt(),
		{Name: "consumer_group", Type: schema.Foreign, Ref: ConsumerGroups, Required: true, OnDelete: schema.Cascade},
		schema.Consumer(),
	},
}, Joins: []Join{{Field: "consumer", List: "groups"}, {Field: "consumer_group", List: "consumers"}}}
