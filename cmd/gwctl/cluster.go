package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// status is the answer of GET /cluster/status.
type status struct {
	ClusterID        string `json:"cluster_id" yaml:"cluster_id"`
	Leader           string `json:"leader" yaml:"leader"`
	Term             uint64 `json:"term" yaml:"term"`
	CommitIndex      uint64 `json:"commit_index" yaml:"commit_index"`
	Healthy          bool   `json:"healthy" yaml:"healthy"`
	FailureTolerance int    `json:"failure_tolerance" yaml:"failure_tolerance"`
	Nodes            []node `json:"nodes" yaml:"nodes"`
}

type node struct {
	ID           string `json:"id" yaml:"id"`
	Name         string `json:"name" yaml:"name"`
	Address      string `json:"address" yaml:"address"`
	Role         string `json:"role" yaml:"role"`
	State        string `json:"state" yaml:"state"`
	Alive        bool   `json:"alive" yaml:"alive"`
	AppliedIndex uint64 `json:"applied_index" yaml:"applied_index"`
	// ServedIndex is the config index that its requests are served with; nil on nodes of older versions.
	ServedIndex *uint64 `json:"served_index,omitempty" yaml:"served_index,omitempty"`
	Version     string  `json:"version" yaml:"version"`
}

// serves tells whether the node's requests see the change at an index.
func (n *node) serves(index uint64) bool {
	if n.ServedIndex == nil {
		return n.AppliedIndex >= index
	}
	return *n.ServedIndex >= index
}

func clusterCmd(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "cluster", Short: "Look at the cluster and change its members", Args: noArgs, RunE: showHelp,
		Example: "  gwctl cluster token                                      # on a member\n  gwctl cluster join 10.0.0.1:7373 --token CJT1.…           # on the new node",
	}
	cmd.AddCommand(statusCmd(o), tokenCmd(o), joinCmd(o), leaveCmd(o), removeCmd(o), transferCmd(o))
	return cmd
}

func statusCmd(o *options) *cobra.Command {
	check := false
	cmd := &cobra.Command{
		Use: "status", Short: "Show leader, members and how many may fail", Args: noArgs,
		Example: "  gwctl cluster status\n  gwctl cluster status -o json\n  gwctl cluster status --check || alert",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s status
			if err := o.call(cmd.Context(), "GET", "/cluster/status", nil, &s); err != nil {
				return err
			}
			if err := o.print(cmd.OutOrStdout(), s, func(w io.Writer) { s.table(w) }); err != nil {
				return err
			}
			if check && !s.Healthy {
				return degradedError{errors.New("the cluster is not healthy")}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, fmt.Sprintf("exit with %d unless the cluster is healthy", exitDegraded))
	return cmd
}

func (s status) table(w io.Writer) {
	leader := "none"
	for _, n := range s.Nodes {
		if n.ID == s.Leader {
			leader = n.Name
		}
	}
	health := "healthy"
	if !s.Healthy {
		health = "NOT HEALTHY"
	}
	fmt.Fprintf(w, "Cluster %s is %s: leader %s, %d more %s may fail\nTerm %d, commit index %d\n\n", s.ClusterID, health, leader,
		s.FailureTolerance, plural(s.FailureTolerance, "voter"), s.Term, s.CommitIndex)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tROLE\tSTATE\tALIVE\tAPPLIED\tLAG\tADDRESS\tVERSION\tID")
	for _, n := range s.Nodes {
		alive, lag := "yes", "-"
		if !n.Alive {
			alive = "NO"
		} else if n.AppliedIndex > 0 {
			lag = fmt.Sprint(max(s.CommitIndex, n.AppliedIndex) - n.AppliedIndex)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n", n.Name, n.Role, n.State, alive, n.AppliedIndex, lag, n.Address, n.Version, n.ID)
	}
	t.Flush()
}

func plural(n int, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

func tokenCmd(o *options) *cobra.Command {
	role, ttl, uses := "voter", time.Hour, 1
	cmd := &cobra.Command{
		Use: "token", Short: "Make a token with which a new node may join", Args: noArgs,
		Long:    "Make a token with which a new node may join, and print it. It is shown once: the cluster keeps only its hash.",
		Example: "  gwctl cluster token\n  gwctl cluster token --role nonvoter --ttl 24h --uses 5",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if ttl <= 0 || uses < 1 {
				return usageError{errors.New("--ttl and --uses must be above zero")}
			}
			var answer struct {
				Token string `json:"token" yaml:"token"`
			}
			err := o.call(cmd.Context(), "POST", "/cluster/tokens", map[string]any{"role": role, "ttl": ttl.String(), "uses": uses}, &answer)
			if err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), answer, func(w io.Writer) { fmt.Fprintln(w, answer.Token) })
		},
	}
	cmd.Flags().StringVar(&role, "role", role, "voter, or nonvoter for a node that only follows")
	cmd.Flags().DurationVar(&ttl, "ttl", ttl, "how long it can be used")
	cmd.Flags().IntVar(&uses, "uses", uses, "how many nodes may join with it")
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{"voter", "nonvoter"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func joinCmd(o *options) *cobra.Command {
	token, discard := "", false
	cmd := &cobra.Command{
		Use: "join ADDRESS", Short: "Tell this (fresh) node to join the cluster of the node at ADDRESS", Args: oneArg("the cluster_listen address of a member"),
		Long: "Tell the node behind --admin to join a cluster. ADDRESS is the cluster_listen address of any of its members.\n" +
			"The node must hold no services, routes or other data; it becomes a voter once it has caught up.",
		Example:           "  gwctl cluster join 10.0.0.1:7373 --token CJT1.…\n  gwctl cluster join 10.0.0.1:7373 --token - < token.txt",
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if token == "-" {
				b, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), 4096))
				if err != nil {
					return err
				}
				token = string(b)
			}
			if token = strings.TrimSpace(token); token == "" {
				return usageError{errors.New("--token is missing: make one with gwctl cluster token on a member")}
			}
			body := map[string]any{"address": args[0], "token": token, "discard_local_data": discard}
			var s status
			if err := o.call(cmd.Context(), "POST", "/cluster/join", body, &s); err != nil {
				return err
			}
			return o.done(cmd, "Joined cluster %s, now of %d %s", s.ClusterID, len(s.Nodes), plural(len(s.Nodes), "node"))
		},
	}
	cmd.Flags().StringVar(&token, "token", "", "join token; - reads it from standard input")
	cmd.Flags().BoolVar(&discard, "discard-local-data", false, "join even if the node holds data, and lose it")
	return cmd
}

func leaveCmd(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "leave", Short: "Take this node out of its cluster", Args: noArgs,
		Long:    "Take the node behind --admin out of its cluster. The others go on without it.",
		Example: "  gwctl --admin http://10.0.0.3:8001 cluster leave",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.call(cmd.Context(), "POST", "/cluster/leave", struct{}{}, nil); err != nil {
				return err
			}
			return o.done(cmd, "Left the cluster")
		},
	}
}

func removeCmd(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "remove NODE", Short: "Remove a node that will not come back", Args: oneArg("the name or id of a node"),
		Long:              "Remove a node from the cluster, by name or id. Its certificate is refused from then on; it has to join anew.",
		Example:           "  gwctl cluster remove node3",
		ValidArgsFunction: o.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.call(cmd.Context(), "DELETE", "/cluster/nodes/"+url.PathEscape(args[0]), nil, nil); err != nil {
				return err
			}
			return o.done(cmd, "Removed %s", args[0])
		},
	}
}

func transferCmd(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "transfer-leader [NODE]", Short: "Hand leadership to another node", Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return oneArg("the name or id of a node, or none to let the leader choose")(cmd, args)
			}
			return nil
		},
		Example:           "  gwctl cluster transfer-leader node2",
		ValidArgsFunction: o.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			body := map[string]any{}
			if len(args) == 1 {
				body["to"] = args[0]
			}
			if err := o.call(cmd.Context(), "POST", "/cluster/leader", body, nil); err != nil {
				return err
			}
			return o.done(cmd, "Leadership was transferred")
		},
	}
}

// completeNodes offers the names of the members, asked of the live node.
func (o *options) completeNodes(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	quick := *o
	quick.timeout = 2 * time.Second
	var s status
	if err := quick.call(cmd.Context(), "GET", "/cluster/status", nil, &s); err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var out []string
	for _, n := range s.Nodes {
		out = append(out, cobra.CompletionWithDesc(n.Name, n.Role+", "+n.State))
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
