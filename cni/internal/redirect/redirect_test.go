package redirect

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/marrowmesh/marrow/internal/netsys/ruleset"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func defaults() Options {
	return Options{
		Probe4: netip.MustParseAddr("169.254.7.127"), Probe6: netip.MustParseAddr("fd16:9254:7127:1337:ffff:ffff:ffff:ffff"),
		IPv6: true, Loopback6: true,
	}
}

func TestGolden(t *testing.T) {
	with := func(change func(*Options)) Options { o := defaults(); change(&o); return o }
	for name, set := range map[string]ruleset.Set{
		"pod":         Pod(defaults()),
		"pod-ipv4":    Pod(with(func(o *Options) { o.IPv6 = false })),
		"pod-no-lo6":  Pod(with(func(o *Options) { o.Loopback6 = false })),
		"pod-dns":     Pod(defaults().For(map[string]string{AnnotationDNS: "true"})),
		"pod-ingress": Pod(defaults().For(map[string]string{AnnotationBypassInbound: "true"})),
		"pod-virtual": Pod(defaults().For(map[string]string{AnnotationInterfaces: "tap0, tap1,,this-name-is-too-long-for-linux"})),
		"node": Node(defaults(), []uint32{0, 1000}, []Enrolled{
			{netip.MustParseAddr("10.0.0.9"), "u2"}, {netip.MustParseAddr("10.0.0.2"), "u1"}, {netip.MustParseAddr("fd00::2"), "u1"}, {netip.MustParseAddr("10.0.0.9"), "u3"},
		}),
		"node-empty": Node(defaults(), []uint32{0}, nil),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join("testdata", name+".nft")
			got := set.String()
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("rules differ from %s (go test -update, then read the diff):\n%s", path, got)
			}
		})
	}
}

func TestEveryRedirectSkipsTheMark(t *testing.T) {
	o := defaults()
	o.DNS, o.Interfaces = true, []string{"tap0"}
	seen := 0
	for _, table := range Pod(o).Tables {
		for _, chain := range table.Chains {
			for _, r := range chain.Rules {
				if _, ok := r.Then[0].(ruleset.Redirect); !ok {
					continue
				}
				seen++
				if !slices.Contains(r.If, fromProxy(false)) {
					t.Errorf("redirects the proxy's own packets: %v", r)
				}
			}
		}
	}
	if seen < 7 {
		t.Errorf("only %d redirecting rules seen", seen)
	}
}

func TestAnnotationsThatSayNothing(t *testing.T) {
	o := defaults()
	o.DNS = true
	got := o.For(map[string]string{AnnotationDNS: "maybe", AnnotationBypassInbound: ""})
	if !got.DNS || got.BypassInbound {
		t.Errorf("%+v", got)
	}
}

func TestEverythingCoversAll(t *testing.T) {
	o := defaults()
	o.DNS = true
	all := Everything()
	for _, table := range Pod(o).Tables {
		if !strings.Contains(all.String(), "table inet "+table.Name+" {") {
			t.Errorf("table %s would stay behind", table.Name)
		}
	}
}
