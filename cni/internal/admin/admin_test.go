package admin

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/marrowmesh/marrow/internal/run"
)

func TestReadyz(t *testing.T) {
	ready, registry := run.NewReady(), prometheus.NewRegistry()
	task := ready.Task("pods of the node")
	m := NewMetrics(registry)
	m.Moved("outside", "pending")
	m.Moved("pending", "enrolled")
	m.Proxies(1)
	h := Public(ready, registry)
	get := func(path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w
	}
	if w := get("/readyz"); w.Code != 503 || !strings.Contains(w.Body.String(), "pods of the node") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	task.Done()
	if w := get("/readyz"); w.Code != 200 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := get("/metrics"); !strings.Contains(w.Body.String(), `marrow_cni_pods{state="enrolled"} 1`) || !strings.Contains(w.Body.String(), `state="pending"} 0`) {
		t.Errorf("%s", w.Body)
	}
}
