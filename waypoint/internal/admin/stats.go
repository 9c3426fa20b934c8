package admin

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	dto "github.com/prometheus/client_model/go"

	"github.com/marrowmesh/marrow/waypoint/internal/intake"
)

// stat is one value under Envoy's kind of name.
type stat struct {
	name  string
	value uint64
	hist  string // of a histogram, in place of value
}

// stats answers /stats, as text or as JSON, with filter and usedonly.
func (s *Sources) stats(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	var filter *regexp.Regexp
	if f := q.Get("filter"); f != "" {
		var err error
		if filter, err = regexp.Compile(f); err != nil {
			writeText(w, http.StatusBadRequest, "Invalid re2 regex: "+err.Error()+"\n")
			return
		}
	}
	all, err := s.collect()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	used := q.Has("usedonly")
	all = slices.DeleteFunc(all, func(st stat) bool {
		return filter != nil && !filter.MatchString(st.name) || used && st.value == 0
	})
	if q.Get("format") == "json" {
		type row struct {
			Name  string `json:"name"`
			Value uint64 `json:"value"`
		}
		rows := []row{}
		for _, st := range all {
			if st.hist == "" {
				rows = append(rows, row{st.name, st.value})
			}
		}
		raw, err := json.Marshal(map[string]any{"stats": rows})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(raw)
		return
	}
	var b strings.Builder
	for _, st := range all {
		if st.hist != "" {
			fmt.Fprintf(&b, "%s: %s\n", st.name, st.hist)
		} else {
			fmt.Fprintf(&b, "%s: %d\n", st.name, st.value)
		}
	}
	writeText(w, http.StatusOK, b.String())
}

// collect reads everything that is counted, by name.
func (s *Sources) collect() ([]stat, error) {
	out := s.own()
	families, err := s.Stats.Gather()
	if err != nil {
		return nil, fmt.Errorf("gather metrics: %w", err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			out = append(out, statOf(f.GetName(), m))
		}
	}
	slices.SortFunc(out, func(a, b stat) int { return cmp.Compare(a.name, b.name) })
	return out, nil
}

// statOf names a series as Envoy names one with tags: the labels follow in pairs.
func statOf(name string, m *dto.Metric) stat {
	var b strings.Builder
	if strings.HasPrefix(name, "istio_") {
		b.WriteString("istiocustom.")
	}
	b.WriteString(name)
	for _, l := range m.GetLabel() {
		b.WriteString("." + l.GetName() + "." + l.GetValue())
	}
	st := stat{name: b.String()}
	switch {
	case m.GetCounter() != nil:
		st.value = uint64(m.GetCounter().GetValue())
	case m.GetGauge() != nil:
		st.value = uint64(max(m.GetGauge().GetValue(), 0))
	case m.GetHistogram() != nil:
		h := m.GetHistogram()
		st.value = h.GetSampleCount()
		var parts []string
		for _, k := range h.GetBucket() {
			parts = append(parts, "B"+strconv.FormatFloat(k.GetUpperBound(), 'g', -1, 64)+"("+strconv.FormatUint(k.GetCumulativeCount(), 10)+")")
		}
		st.hist = strings.Join(append(parts, "count "+strconv.FormatUint(st.value, 10)), " ")
	case m.GetUntyped() != nil:
		st.value = uint64(max(m.GetUntyped().GetValue(), 0))
	}
	return st
}

// own are the values that Envoy has and that no series holds.
func (s *Sources) own() []stat {
	live := uint64(0)
	if s.serverState() == adminv3.ServerInfo_LIVE {
		live = 1
	}
	clusters, chains := s.Upstreams.All(), 0
	t := s.Intake.Table()
	if t.Internal != nil {
		chains = len(t.Internal.Chains)
	}
	out := []stat{
		{name: "server.live", value: live},
		{name: "server.state", value: uint64(s.serverState())},
		{name: "server.uptime", value: uint64(s.Now().Sub(s.Started).Seconds())},
		{name: "cluster_manager.active_clusters", value: uint64(len(clusters))},
		{name: "listener_manager.total_filter_chains", value: uint64(chains)},
	}
	for url, name := range map[string]string{
		intake.ClusterType: "cluster_manager.cds", intake.ListenerType: "listener_manager.lds", intake.RouteType: "http.rds", intake.EndpointType: "cluster.eds",
	} {
		n := uint64(0)
		for _, h := range s.held(url, nil) {
			if h.refused != nil {
				n++
			}
		}
		out = append(out, stat{name: name + ".refused_resources", value: n})
	}
	now := s.Now()
	for _, c := range clusters {
		active, healthy := int64(0), uint64(0)
		for _, h := range c.Hosts {
			active += h.Active()
			if h.Healthy && h.EjectedUntil(now).IsZero() && c.Well(h) {
				healthy++
			}
		}
		p := "cluster." + c.Config.Name + "."
		out = append(out, stat{name: p + "membership_total", value: uint64(len(c.Hosts))}, stat{name: p + "membership_healthy", value: healthy},
			stat{name: p + "upstream_rq_active", value: uint64(max(active, 0))})
	}
	return out
}
