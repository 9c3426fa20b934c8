package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

func itoa(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// drain is how long connections may finish: set directly, or a bit less than what
// Kubernetes gives before it kills.
func (l *loader) drain() time.Duration {
	const about = "time for connections to finish at the end; 0 cuts at once"
	if _, set := l.r.Optional("CONNECTION_TERMINATION_DEADLINE", about); set {
		return l.r.Duration("CONNECTION_TERMINATION_DEADLINE", 0, about)
	}
	const grace = "TERMINATION_GRACE_PERIOD_SECONDS"
	if _, set := l.r.Optional(grace, "seconds until Kubernetes kills"); !set {
		return 5 * time.Second
	}
	n := l.r.IntIn(grace, 30, 0, 7*24*3600, "seconds until Kubernetes kills")
	if n > 10 {
		return time.Duration(n-5) * time.Second
	}
	return time.Duration(max(n-1, 1)) * time.Second
}

// metajson reads metadata that is more than texts.
func (l *loader) metajson() map[string]string {
	const prefix = "ISTIO_METAJSON_"
	all := l.r.WithPrefix(prefix, "proxy metadata as JSON")
	for k, v := range all {
		if !json.Valid([]byte(v)) {
			l.r.Fail(prefix+k, v, "must be JSON")
		}
	}
	return all
}

// workers reads a number, or a part of the cores such as 50%; 0 means all cores.
func (l *loader) workers(concurrency *int) int {
	const name = "ZTUNNEL_WORKER_THREADS"
	v, set := l.r.Optional(name, "most threads that work at once (as few as are needed do), N% of the cores, 0: all cores; unset: as many as the cores or the CPU limit")
	cores := runtime.NumCPU()
	if !set {
		switch {
		case concurrency == nil:
			return 0
		case *concurrency == 0:
			return cores
		}
		return max(*concurrency, 0)
	}
	text, percent := strings.CutSuffix(v, "%")
	n, err := strconv.ParseUint(text, 10, 16)
	switch {
	case err != nil || percent && (n == 0 || n > 100):
		l.r.Fail(name, v, "must be a number of threads, or 1% to 100% of the cores")
		return 0
	case percent:
		return (cores*int(n) + 99) / 100
	case n == 0:
		return cores
	}
	return int(n)
}

func (l *loader) tls() TLS {
	const name = "COMPLIANCE_POLICY"
	policy := l.r.String(name, "", "pqc: only post-quantum key exchange, with every peer")
	if policy != "" && policy != "pqc" {
		l.r.Fail(name, policy, "no compliance policy but pqc is implemented; unset it")
	}
	records := l.r.Enum("MARROW_TLS_RECORDS", "own", []string{"own", "std"}, "who encrypts tunnels after the handshake: our own code or the standard library")
	return TLS{StdRecords: records == "std", PostQuantum: policy == "pqc"}
}

// refuse names settings that this proxy cannot honour and whose loss would
// matter: less security than asked for, or nothing served.
func (l *loader) refuse() {
	for name, bad := range map[string]struct{ value, why string }{
		"PROXY_MODE":             {"!shared", "only shared mode is implemented"},
		"CRL_PATH":               {"!", "certificate revocation lists are not implemented"},
		"LOCAL_XDS_PATH":         {"!", "static state is not implemented, use a control plane"},
		"LOCAL_XDS":              {"!", "static state is not implemented, use a control plane"},
		"XDS_ON_DEMAND":          {"true", "on-demand discovery is not implemented"},
		"FAKE_CA":                {"true", "exists in test builds of Istio only"},
		"UNSTABLE_ENABLE_SOCKS5": {"true", "SOCKS5 is not implemented"},
		"ENABLE_PROXY":           {"false", "then nothing would be served"},
	} {
		v, set := l.r.Optional(name, bad.why)
		if !set {
			continue
		}
		if not, negated := strings.CutPrefix(bad.value, "!"); negated && v != not || !negated && v == bad.value {
			l.r.Fail(name, v, bad.why+"; unset it")
		}
	}
}

// ignored lists set names that are Istio's, mean something there and change
// nothing here.
func (l *loader) ignored() []string {
	var out []string
	for _, name := range []string{
		"TLS12_ENABLED", "USER_TIMEOUT_ENABLED", "PREFERED_SERVICE_NAMESPACE", "PROXY_WORKLOAD_INFO",
		"ZTUNNEL_CPU_LIMIT", "ZTUNNEL_RESOURCE_CPU_LIMIT", "ZTUNNEL_RESOURCE_CPU_REQUEST",
	} {
		if v, set := l.r.Optional(name, "no meaning here"); set && v != "false" {
			out = append(out, name)
		}
	}
	return out
}

// proxyConfig is the part of Istio's ProxyConfig that ztunnel knows.
type proxyConfig struct {
	DiscoveryAddress string            `json:"discoveryAddress"`
	AdminPort        *int              `json:"proxyAdminPort"`
	StatsPort        *int              `json:"statsPort"`
	Concurrency      *int              `json:"concurrency"`
	Metadata         map[string]string `json:"proxyMetadata"`
}

// proxyConfig merges the variable PROXY_CONFIG over the mesh file's defaultConfig.
func (l *loader) proxyConfig() proxyConfig {
	var mesh struct {
		DefaultConfig proxyConfig `json:"defaultConfig"`
	}
	if b, found := l.files(meshFile); found {
		if err := yaml.Unmarshal(b, &mesh); err != nil {
			l.r.Fail(meshFile, "file", "is not the YAML of a mesh configuration: "+err.Error())
		}
	}
	pc := mesh.DefaultConfig
	if text := l.r.String("PROXY_CONFIG", "", "YAML of Istio's ProxyConfig"); text != "" {
		var env proxyConfig
		if err := yaml.Unmarshal([]byte(text), &env); err != nil {
			l.r.Fail("PROXY_CONFIG", text, "is not the YAML of a ProxyConfig: "+err.Error())
		}
		pc = pc.with(env)
	}
	if err := pc.check(); err != nil {
		l.r.Fail("PROXY_CONFIG", "merged with "+meshFile, err.Error())
	}
	return pc
}

func (p proxyConfig) with(o proxyConfig) proxyConfig {
	if o.DiscoveryAddress != "" {
		p.DiscoveryAddress = o.DiscoveryAddress
	}
	if o.AdminPort != nil {
		p.AdminPort = o.AdminPort
	}
	if o.StatsPort != nil {
		p.StatsPort = o.StatsPort
	}
	if o.Concurrency != nil {
		p.Concurrency = o.Concurrency
	}
	p.Metadata = p.metadata(o.Metadata)
	return p
}

// metadata is the ProxyConfig's with over on top.
func (p proxyConfig) metadata(over map[string]string) map[string]string {
	out := make(map[string]string, len(p.Metadata)+len(over))
	for _, m := range []map[string]string{p.Metadata, over} {
		for k, v := range m {
			out[strings.TrimPrefix(k, metaPrefix)] = v
		}
	}
	return out
}

func (p proxyConfig) check() error {
	var errs []error
	for name, n := range map[string]*int{"proxyAdminPort": p.AdminPort, "statsPort": p.StatsPort} {
		if n != nil && (*n < 0 || *n > 65535) {
			errs = append(errs, fmt.Errorf("%s %d: must be a port from 0 to 65535", name, *n))
		}
	}
	if p.Concurrency != nil && (*p.Concurrency < 0 || *p.Concurrency > 1<<16) {
		errs = append(errs, fmt.Errorf("concurrency %d: must be 0 (all cores) or a number of threads", *p.Concurrency))
	}
	return errors.Join(errs...)
}

func (proxyConfig) port(n *int, def uint16) uint16 {
	if n == nil || *n < 0 || *n > 65535 {
		return def // out of range was refused by check
	}
	return uint16(*n)
}
