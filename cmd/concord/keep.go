package main

import (
	"context"
	"errors"
	"math"
	"sync/atomic"
	"time"

	"concord/admin/service"
	"concord/fsm/entity"
	"concord/fsm/schema"
)

// keep is plugin.Keep by way of the Admin API's service, so that rows of plugins are checked, sealed and forwarded to the leader as all
// others are. The plugins are made before the service; until then nothing can be written.
type keep struct {
	service atomic.Pointer[service.Service]
}

func (k *keep) mutate(ctx context.Context, m service.Mutation) error {
	s := k.service.Load()
	if s == nil {
		return errors.New("the node is still starting")
	}
	m.Target.Entity = entity.ACMEStorageTable
	_, err := s.Mutate(service.WithActor(ctx, service.Actor{Program: true}), m)
	return err
}

func body(key, value string, life time.Duration) schema.Record {
	rec := schema.Record{"key": key, "value": value}
	if life > 0 {
		rec["ttl"] = math.Ceil(life.Seconds())
	}
	return rec
}

// Create implements plugin.Keep.
func (k *keep) Create(ctx context.Context, key, value string, life time.Duration) (bool, error) {
	err := k.mutate(ctx, service.Mutation{Verb: service.Create, Body: body(key, value, life)})
	if refused := (*service.Error)(nil); errors.As(err, &refused) && refused.Kind == service.UniqueTaken {
		return false, nil
	}
	return err == nil, err
}

// Put implements plugin.Keep.
func (k *keep) Put(ctx context.Context, key, value string, life time.Duration) error {
	return k.mutate(ctx, service.Mutation{Verb: service.Upsert, Target: service.Target{Ref: key}, Body: body(key, value, life)})
}

// Delete implements plugin.Keep.
func (k *keep) Delete(ctx context.Context, key string) error {
	return k.mutate(ctx, service.Mutation{Verb: service.Delete, Target: service.Target{Ref: key}})
}
