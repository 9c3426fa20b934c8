package admin

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// serverState is Envoy's word for what the open readiness tasks mean.
func (s *Sources) serverState() adminv3.ServerInfo_State {
	open := s.Pending()
	switch {
	case slices.Contains(open, Draining):
		return adminv3.ServerInfo_DRAINING
	case len(open) > 0:
		return adminv3.ServerInfo_INITIALIZING
	}
	return adminv3.ServerInfo_LIVE
}

// Draining is the readiness task that a program which is about to end never fulfils.
const Draining = "draining"

func (s *Sources) ready(w http.ResponseWriter, _ *http.Request) {
	st := s.serverState()
	status := http.StatusServiceUnavailable
	if st == adminv3.ServerInfo_LIVE {
		status = http.StatusOK
	}
	writeText(w, status, st.String()+"\n")
}

func (s *Sources) serverInfo(w http.ResponseWriter, _ *http.Request) {
	up := durationpb.New(s.Now().Sub(s.Started).Truncate(time.Second))
	writeMessage(w, &adminv3.ServerInfo{
		Version: "marrow/" + s.Version, State: s.serverState(), UptimeCurrentEpoch: up, UptimeAllEpochs: up, HotRestartVersion: "disabled",
		CommandLineOptions: &adminv3.CommandLineOptions{
			ServiceCluster: s.Node.GetCluster(), ServiceNode: s.Node.GetId(), LogLevel: s.levelText(),
			DrainTime: durationpb.New(s.Config.Drain), ParentShutdownTime: durationpb.New(s.Config.Deadline),
		},
		Node: s.Node,
	}, true)
}

func (s *Sources) levelText() string {
	if s.Levels == nil {
		return "off"
	}
	first, _, _ := strings.Cut(s.Levels.String(), ",")
	return first
}

func (s *Sources) quit(w http.ResponseWriter, r *http.Request) {
	if !posted(w, r) {
		return
	}
	writeText(w, http.StatusOK, "OK\n")
	s.Quit()
}

func posted(w http.ResponseWriter, r *http.Request) bool {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		writeText(w, http.StatusMethodNotAllowed, fmt.Sprintf("Method %s not allowed, POST required.", r.Method))
		return false
	}
	return true
}

// logging answers /logging: GET shows, POST shows and changes; level=L is for all, NAME=L and paths=NAME:L,... for one scope.
func (s *Sources) logging(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if len(q) > 0 {
		if !posted(w, r) {
			return
		}
		var rules []string
		for name, list := range q {
			for _, v := range list {
				rules = append(rules, rulesOf(name, v)...)
			}
		}
		_, whole := q["level"]
		if err := s.Levels.Set(strings.Join(rules, ","), whole || q.Has("reset")); err != nil {
			writeText(w, http.StatusBadRequest, "usage: /logging?<name>=<level> (change single level), /logging?paths=name1:level1,name2:level2, /logging?level=<level> (change all levels): "+err.Error()+"\n")
			return
		}
	}
	var b strings.Builder
	b.WriteString("active loggers:\n")
	for name, level := range s.Levels.Scopes() {
		if name == "" {
			name = "marrow"
		}
		if level == "warn" {
			level = "warning"
		}
		fmt.Fprintf(&b, "  %s: %s\n", name, level)
	}
	writeText(w, http.StatusOK, b.String())
}

// rulesOf is one parameter as our filter spells it.
func rulesOf(name, v string) []string {
	level := func(l string) string {
		switch l {
		case "warning":
			return "warn"
		case "critical":
			return "error"
		}
		return l
	}
	switch name {
	case "level":
		return strings.Split(level(v), " ")
	case "reset":
		return nil
	case "paths":
		var out []string
		for p := range strings.SplitSeq(v, ",") {
			scope, l, _ := strings.Cut(p, ":")
			out = append(out, scope+"="+level(l))
		}
		return out
	case "marrow":
		return []string{level(v)}
	}
	return []string{name + "=" + level(v)}
}

// certs answers /certs.
func (s *Sources) certs(w http.ResponseWriter, r *http.Request) {
	out := &adminv3.Certificates{}
	if c := s.certificate(r.Context()); c != nil {
		pair := &adminv3.Certificate{}
		for _, root := range c.Roots {
			pair.CaCert = append(pair.CaCert, s.details(root, "ROOTCA"))
		}
		for _, own := range c.Chain {
			pair.CertChain = append(pair.CertChain, s.details(own, "default"))
		}
		out.Certificates = append(out.Certificates, pair)
	}
	writeProto(w, out)
}

func (s *Sources) details(c *x509.Certificate, path string) *adminv3.CertificateDetails {
	const day = 24 * time.Hour
	d := &adminv3.CertificateDetails{
		Path: path, SerialNumber: fmt.Sprintf("%x", c.SerialNumber), DaysUntilExpiration: uint64(max(c.NotAfter.Sub(s.Now()), 0) / day),
		ValidFrom: timestamppb.New(c.NotBefore), ExpirationTime: timestamppb.New(c.NotAfter),
	}
	for _, u := range c.URIs {
		d.SubjectAltNames = append(d.SubjectAltNames, &adminv3.SubjectAlternateName{Name: &adminv3.SubjectAlternateName_Uri{Uri: u.String()}})
	}
	for _, n := range c.DNSNames {
		d.SubjectAltNames = append(d.SubjectAltNames, &adminv3.SubjectAlternateName{Name: &adminv3.SubjectAlternateName_Dns{Dns: n}})
	}
	return d
}
