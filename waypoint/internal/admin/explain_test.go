package admin

import (
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/waypoint/internal/intake"
	"github.com/marrowmesh/marrow/waypoint/internal/phases"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

func TestExplainQuestion(t *testing.T) {
	in := intake.New(upstream.NewStore(nil, time.Now), obs.Discard())
	h := Explain(phases.New(phases.Config{Table: in.Table, Log: obs.Discard(), NewID: func() string { return "x" }}), identity.ID{})
	for q, want := range map[string]string{
		"": "parameter to is missing", "to=10.0.0.1": "neither ip:port", "to=10.0.0.1:80&identity=x": "identity", "to=10.0.0.1:80&methd=GET": "not known",
		"to=10.0.0.1:80&header=x": "name: value", "to=10.0.0.1:80&header=x:a%0ab": "name: value", "to=10.0.0.1:80&path=x": "slash", "to=10.0.0.1:80&protocol=h3": "h2c",
		"to=10.0.0.1:80": "10.0.0.1:80 is not a destination",
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/explain?"+q, nil))
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("%q: %d %s", q, w.Code, w.Body)
		}
	}
	q, err := question(url.Values{"to": {"10.0.0.1:80"}, "source": {"10.0.0.2:7"}, "authority": {"web"}, "header": {"a: b", "a:c"}, "method": {"PUT"}, "protocol": {"h2c"}}, identity.ID{})
	if err != nil || q.Source != netip.MustParseAddrPort("10.0.0.2:7") || len(q.Header["A"]) != 2 || q.Method != "PUT" || !q.HTTP2 || q.Authority != "web" {
		t.Errorf("got %+v, %v", q, err)
	}
}
