package table

import (
	"fmt"
	"testing"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/prototext"
)

// TestUnsoundTLS: less than TLS 1.2, and suites without forward secrecy, are never served; what is asked for beside them is, so that one
// server does not hold up its neighbours on a port.
func TestUnsoundTLS(t *testing.T) {
	for text, want := range map[string]string{
		``:                                      "303-304 []",
		`tls_minimum_protocol_version: TLSv1_0`: "303-304 []",
		`tls_minimum_protocol_version: TLSv1_1 tls_maximum_protocol_version: TLSv1_2`:                            "303-303 []",
		`tls_minimum_protocol_version: TLSv1_3`:                                                                  "304-304 []",
		`tls_maximum_protocol_version: TLSv1_1`:                                                                  "refused",
		`cipher_suites: "AES128-SHA" cipher_suites: "ECDHE-RSA-AES128-GCM-SHA256" cipher_suites: "DES-CBC3-SHA"`: "303-304 [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]",
		`cipher_suites: "AES128-SHA"`:                                                                            "refused",
		`cipher_suites: "ECDHE-RSA-AES128-GCM-SHA256" cipher_suites: "NULL"`:                                     "refused",
	} {
		p := &tlsv3.TlsParameters{}
		if err := prototext.Unmarshal([]byte(text), p); err != nil {
			t.Fatal(err)
		}
		e := &EdgeTLS{}
		got := "refused"
		if e.params(p) == nil {
			got = fmt.Sprintf("%x-%x %v", e.Min, e.Max, e.Ciphers)
		}
		if got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}
