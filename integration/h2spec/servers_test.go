//go:build lab

package h2spec_test

import (
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/integration/command"
)

// place is where a server of HTTP/2 stands, and how h2spec reaches it.
type place struct {
	name string
	pod  string
	args []string
}

var places = []place{
	{"waypoint, inside of HBONE", "client", []string{"--host", "app", "--port", "8080"}},
	{"gateway, in the clear", "stranger", []string{"--host", "front-istio", "--port", "80"}},
	{"gateway, TLS", "stranger", []string{"--host", "front-istio", "--port", "443", "--tls", "--insecure"}},
}

// judge runs h2spec by run, which gives what it printed to who asks for that.
func judge(t *testing.T, program string, args []string, run func(args []string) error) results {
	t.Helper()
	report := filepath.Join(t.TempDir(), "report.xml")
	ran := run(append([]string{program, "--strict", "--timeout", "2", "--junit-report", report}, args...))
	raw, err := os.ReadFile(report)
	if err != nil {
		t.Errorf("%v; h2spec: %v", err, ran)
		return nil
	}
	return parse(t, raw)
}

// failed are the cases that failed; one that was skipped did not.
func failed(r results) map[string]string {
	maps.DeleteFunc(r, func(_, fault string) bool { return !strings.HasPrefix(fault, "failed") })
	return r
}

// asker runs h2spec against a server.
type asker func(args ...string) results

// goServer is net/http's server, asked as the place is, without a mesh.
func goServer(t *testing.T, program string, p place) asker {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "an answer of some bytes\n")
	}))
	tls := slices.Contains(p.args, "--tls")
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(!tls)
	s.Config.Protocols.SetHTTP2(tls)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	if tls {
		s.EnableHTTP2 = true
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	host, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	base := []string{"--host", host, "--port", port}
	if tls {
		base = append(base, "--tls", "--insecure")
	}
	return func(args ...string) results {
		return judge(t, program, append(base, args...), func(args []string) error {
			return exec.CommandContext(t.Context(), args[0], args[1:]...).Run()
		})
	}
}

// TestServersNotWorse: at the waypoint's inner HTTP/2 and at the gateway we fail no case of h2spec but those that both net/http and
// Envoy fail, each asked in this run. Cases race with answers: one that counts against us has to fail three times more.
func TestServersNotWorse(t *testing.T) {
	path := program(t)
	envoy := command.Envoy(t)
	serve := []string{command.Program(t, "../../bin/marrow", "build"), "app", "serve", "--listen=:8080"}
	world := command.World{
		Pods: []command.Pod{
			{Name: "app", Node: "node-2", Mesh: true, Command: serve},
			{Name: "client", Node: "node-1", Mesh: true, Command: serve},
			{Name: "stranger", Node: "node-1", Command: serve},
		},
		Protocol: "http", Clear: "app", TLS: "app", Host: "front-istio",
	}
	start := func(name, waypoint string) func(*testing.T, place) asker {
		l, _ := world.Start(t, "h2spec-"+name, waypoint, "app")
		return func(t *testing.T, p place) asker {
			ask := func(args ...string) results {
				return judge(t, path, append(p.args, args...), func(args []string) error {
					_, err := l.Exec(t, 5*time.Minute, p.pod, args...)
					return err
				})
			}
			// Listeners and routes come a moment after the pods.
			for end := time.Now().Add(20 * time.Second); len(failed(ask("generic/3.1"))) > 0 && time.Now().Before(end); {
				<-time.After(100 * time.Millisecond)
			}
			return ask
		}
	}
	ours, theirs := start("ours", ""), start("envoy", envoy)
	for _, p := range places {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel() // it is waiting that takes the time
			askers := []asker{ours(t, p), goServer(t, path, p), theirs(t, p)}
			var answers [3]results
			var asked sync.WaitGroup
			for i, ask := range askers {
				asked.Go(func() {
					answers[i] = ask()
					// The default is too short for servers that take larger frames than 16 KiB.
					maps.Copy(answers[i], ask("http2/4.2", "--max-header-length", "250000"))
				})
			}
			asked.Wait()
			for i, r := range answers {
				if len(r) < 140 {
					t.Fatalf("server %d: h2spec ran %d cases only", i, len(r))
				}
			}
			cases := len(answers[0])
			own, we, std, peer := askers[0], failed(answers[0]), failed(answers[1]), failed(answers[2])
			behind := func(name string) bool { return std[name] == "" || peer[name] == "" }
			for range 3 {
				sections := map[string]bool{}
				for name := range we {
					if behind(name) {
						section, _, _ := strings.Cut(name, ": ")
						sections[section] = true
					}
				}
				for section := range sections {
					again := failed(own(section))
					maps.DeleteFunc(we, func(name, _ string) bool {
						return strings.HasPrefix(name, section+": ") && again[name] == ""
					})
				}
			}
			mark := func(bad map[string]string, name string) string {
				if bad[name] != "" {
					return "fails"
				}
				return "-"
			}
			names := slices.Concat(slices.Collect(maps.Keys(we)), slices.Collect(maps.Keys(std)), slices.Collect(maps.Keys(peer)))
			slices.Sort(names)
			var table strings.Builder
			for _, name := range slices.Compact(names) {
				fmt.Fprintf(&table, "| %s | %s | %s | %s |\n", name, mark(we, name), mark(std, name), mark(peer, name))
				if fault := we[name]; fault != "" && behind(name) {
					t.Errorf("we fail %q, net/http: %s, Envoy: %s: %s", name, mark(std, name), mark(peer, name), fault)
				}
			}
			t.Logf("%d cases, failed by us %d, by net/http %d, by Envoy %d\n| case | ours | net/http | Envoy |\n%s", cases, len(we), len(std), len(peer), &table)
		})
	}
}
