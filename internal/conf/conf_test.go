package conf

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/run"
)

func TestTypedGetters(t *testing.T) {
	r := FromMap(map[string]string{
		"S": "", "B": "true", "D1": "90", "D2": "1m30s", "I": "-4", "U": "0x539", "IP": "::ffff:10.0.0.1", "A": "[::1]:15000", "L": " a, ,b",
		"H_x": "1", "H_": "no", "E": "json",
	})
	check := func(name string, ok bool) {
		t.Helper()
		if !ok {
			t.Errorf("%s is wrong", name)
		}
	}
	check("S", r.String("S", "def") == "" && r.String("none", "def") == "def")
	check("B", r.Bool("B", false) && r.Bool("none2", true))
	check("D", r.Duration("D1", 0) == 90*time.Second && r.Duration("D2", 0) == 90*time.Second && r.Duration("none3", time.Hour) == time.Hour)
	check("I", r.Int("I", 0) == -4)
	check("U", r.Uint32("U", 0) == 1337)
	check("IP", r.IP("IP", netip.Addr{}) == netip.MustParseAddr("10.0.0.1") && !r.IP("none4", netip.Addr{}).IsValid())
	check("A", r.Addr("A", "x:1") == "[::1]:15000")
	check("L", slices.Equal(r.List("L", ""), []string{"a", "b"}))
	m := r.WithPrefix("H_")
	check("H_", len(m) == 1 && m["x"] == "1")
	check("E", r.Enum("E", "plain", []string{"plain", "json"}) == "json")
	if err := r.Err(); err != nil {
		t.Error(err)
	}
}

func TestErrorsAreJoined(t *testing.T) {
	r := FromMap(map[string]string{"B": "yes", "D": "-5s", "D2": "soon", "I": "x", "U": "4294967296", "IP": "host", "A": "nohost", "A2": "h:99999", "P": "70000", "E": "xml"})
	r.Bool("B", false)
	r.Duration("D", 0)
	r.Duration("D2", 0)
	r.Int("I", 0)
	r.Uint32("U", 0)
	r.IP("IP", netip.Addr{})
	r.Addr("A", "")
	r.Addr("A2", "")
	r.Port("P", 0)
	r.Enum("E", "plain", []string{"plain", "json"})
	r.Required("NODE_NAME", "the node")
	err := r.Err()
	var ce *Error
	if !errors.As(err, &ce) || len(ce.Problems) != 11 {
		t.Fatalf("%d problems: %v", len(ce.Problems), err)
	}
	for _, want := range []string{`B="yes": must be true or false`, `E="xml": must be one of plain, json`, "NODE_NAME: must be set (the node)"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q misses %q", err, want)
		}
	}
}

func TestUnknownMarrowNames(t *testing.T) {
	r := FromMap(map[string]string{"MARROW_LOGS": "x", "MARROW_OTHER_THING": "x", "PATH": "/bin", "MARROW_LAB_DIR": "/x"})
	r.String("MARROW_LOG", "")
	r.Known("MARROW_LAB_DIR")
	err := r.Err()
	if err == nil || err.Error() != "configuration refused: MARROW_LOGS: unknown setting; did you mean MARROW_LOG?; MARROW_OTHER_THING: unknown setting; unset it" {
		t.Fatal(err)
	}
}

func TestSecretsStaySecret(t *testing.T) {
	r := FromMap(map[string]string{"T": "hunter2"})
	r.Fail("T", r.Secret("T", ""), "is not a token")
	if err := r.Err(); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Fatal(err)
	}
}

func TestExitCode(t *testing.T) {
	var out strings.Builder
	r := FromMap(map[string]string{"MARROW_X": "1"})
	if got := run.ExitCode("ztunnel", &out, r.Err()); got != run.ExitConfig {
		t.Fatalf("exit %d: %s", got, out.String())
	}
}

func FuzzDuration(f *testing.F) {
	for _, s := range []string{"5", "5m", "", "-1s", "9999999999999h", "1e9"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if d, err := parseDuration(s); err == nil && d < 0 {
			t.Fatalf("%q gave %v", s, d)
		}
	})
}
