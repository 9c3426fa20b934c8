package ruleset

import (
	"net/netip"
	"testing"
)

func TestText(t *testing.T) {
	for want, r := range map[string]Rule{
		`meta nfproto ipv6 ip6 saddr fd00::/8 counter return`: {
			If: []Match{Family{V6: true}, Addr{Prefix: netip.MustParsePrefix("fd00::/8")}}, Then: []Action{Return{}},
		},
		`oifname != "lo" meta l4proto udp th sport != 53 counter redirect to :15053`: {
			If: []Match{Interface{Out: true, Not: true, Name: "lo"}, Proto{"udp"}, Port{Not: true, Port: 53}}, Then: []Action{Redirect{15053}},
		},
		`ct mark & 0xfff != 0x1 meta skuid 7 ip daddr @s counter snat ip to 10.0.0.1`: {
			If: []Match{Mark{Conn: true, Not: true, Value: 1, Mask: 0xfff}, Owner{7}, InSet{Set: "s"}}, Then: []Action{SourceNAT{netip.MustParseAddr("10.0.0.1")}},
		},
	} {
		if got := r.String(); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}
