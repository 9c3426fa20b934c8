package expr

import (
	"strings"
	"testing"
	"time"
)

func attributes(root string) map[string]any {
	switch root {
	case "request":
		return map[string]any{"path": "/a?b", "method": "GET", "headers": map[string]string{"x-user": "ann"}, "size": int64(7), "duration": 30 * time.Millisecond}
	case "response":
		return map[string]any{"code": int64(503), "flags": int64(4)}
	case "connection":
		return map[string]any{"mtls": true}
	}
	return nil
}

func TestExpressions(t *testing.T) {
	for text, want := range map[string]bool{
		"response.code >= 400":                                   true,
		"response.code >= 400 && request.method == 'POST'":       false,
		"request.headers['x-user'] == 'ann'":                     true,
		"request.headers['x-none'] == 'ann'":                     false,
		"'x-none' in request.headers":                            false,
		"has(response.code) && !has(response.grpc_status)":       true,
		"response.nothing == 1":                                  false,
		"request.path.startsWith('/a') && connection.mtls":       true,
		"request.path.matches('^/a')":                            true,
		"request.duration > duration('10ms')":                    true,
		"xds.cluster_name == 'x' || true":                        true,
		"response.code":                                          false,
		"request.size + 1 == 8":                                  true,
		"filter_state['io.istio.peer_principal'].contains('sa')": false,
	} {
		p, err := Compile(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := p.Holds(attributes); got != want {
			t.Errorf("%s: got %t", text, got)
		}
	}
}

func TestBadExpressions(t *testing.T) {
	for _, text := range []string{"", "response.code >", "'text'", "1 + 1", "nobody.knows == 1", "f(1)", strings.Repeat("!", 9000) + "true", strings.Repeat("(", 200) + "true" + strings.Repeat(")", 200)} {
		if _, err := Compile(text); err == nil {
			t.Errorf("%.40q was taken", text)
		}
	}
}

func TestCostIsBounded(t *testing.T) {
	list := "[" + strings.Repeat("1,", 60) + "1]"
	text := list + ".all(a, " + list + ".all(b, " + list + ".all(c, " + list + ".all(d, a + b + c + d > 0))))"
	p, err := Compile(text)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if p.Holds(attributes) {
		t.Error("an expression beyond the limit holds")
	}
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("took %v", d)
	}
}

func FuzzExpression(f *testing.F) {
	f.Add("response.code >= 400 && request.headers['a'] == 'b'")
	f.Add("request.path.matches('(a+)+$')")
	f.Fuzz(func(_ *testing.T, text string) {
		if p, err := Compile(text); err == nil {
			p.Holds(attributes)
		}
	})
}
