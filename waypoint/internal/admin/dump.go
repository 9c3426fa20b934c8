package admin

import (
	"maps"
	"slices"
	"time"

	"github.com/marrowmesh/marrow/waypoint/internal/config"
	"github.com/marrowmesh/marrow/waypoint/internal/intake"
	"github.com/marrowmesh/marrow/waypoint/internal/table"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// Dump is the whole state, for /config_dump.
type Dump struct {
	Config    *config.Config    `json:"config"`
	Version   string            `json:"version"`
	Trust     []string          `json:"trustDomains"`
	Chains    []Chain           `json:"chains"`
	Clusters  []Cluster         `json:"clusters"`
	Resources []intake.Accepted `json:"resources"`
	Refused   []intake.Refused  `json:"refused"`
}

// Chain is one way to serve a destination.
type Chain struct {
	Name    string   `json:"name"`
	Kind    string   `json:"kind"`
	Filters []string `json:"filters,omitempty"`
	Routes  []Route  `json:"routes,omitempty"`
}

// Route is one compiled route.
type Route struct {
	Name     string            `json:"name"`
	When     string            `json:"when"`
	Then     string            `json:"then"`
	Clusters map[string]uint32 `json:"clusters,omitempty"`
}

// Cluster is one cluster with its endpoints.
type Cluster struct {
	Name      string     `json:"name"`
	Service   string     `json:"service,omitempty"`
	Endpoints []Endpoint `json:"endpoints,omitempty"`
}

// Endpoint is one endpoint as it stands now.
type Endpoint struct {
	Address  string `json:"address"`
	Tunnel   string `json:"tunnel,omitempty"`
	Identity string `json:"identity,omitempty"`
	Workload string `json:"workload,omitempty"`
	Healthy  bool   `json:"healthy"`
	Ejected  bool   `json:"ejected,omitempty"`
	Active   int64  `json:"active"`
}

// Make collects the state.
func Make(cfg *config.Config, version string, in *intake.Intake, ups *upstream.Store, now time.Time) Dump {
	t := in.Table()
	d := Dump{Config: cfg, Version: version, Resources: in.InForce(), Refused: in.Refusals()}
	if t.Terminate != nil {
		d.Trust = t.Terminate.TrustDomains
	}
	if t.Internal != nil {
		for _, name := range slices.Sorted(maps.Keys(t.Internal.Chains)) {
			d.Chains = append(d.Chains, chain(t, t.Internal.Chains[name]))
		}
	}
	for _, c := range ups.All() {
		out := Cluster{Name: c.Config.Name, Service: c.Config.Service.Host}
		for _, h := range c.Hosts {
			e := Endpoint{
				Address: h.Addr.String(), Workload: h.Workload.Name, Healthy: h.Healthy, Active: h.Active(),
				Ejected: !h.EjectedUntil(now).IsZero(),
			}
			if h.Tunnelled() {
				e.Tunnel = h.Hop.String()
			}
			if !h.Identity.IsZero() {
				e.Identity = h.Identity.String()
			}
			out.Endpoints = append(out.Endpoints, e)
		}
		d.Clusters = append(d.Clusters, out)
	}
	return d
}

func chain(t *table.Table, c *table.Chain) Chain {
	out := Chain{Name: c.Name, Kind: "tcp"}
	if c.HTTP == nil {
		return out
	}
	out.Kind = "http"
	for _, f := range c.HTTP.Filters {
		out.Filters = append(out.Filters, f.Name)
	}
	rules := t.RulesOf(c.HTTP)
	if rules == nil {
		return out
	}
	for _, r := range rules.All() {
		row := Route{Name: r.Name, When: r.When()}
		switch a := r.Action.(type) {
		case *table.Forward:
			row.Then, row.Clusters = "forward", map[string]uint32{}
			for _, w := range a.Clusters {
				row.Clusters[w.Cluster] = w.Weight
			}
		case *table.Redirect:
			row.Then = "redirect"
		case *table.Direct:
			row.Then = "answer"
		}
		out.Routes = append(out.Routes, row)
	}
	return out
}
