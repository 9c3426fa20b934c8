package plugin

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/marrowmesh/marrow/cni/internal/pods"
	"github.com/marrowmesh/marrow/internal/obs"
)

type enroller func(r pods.Request) error

func (e enroller) Enrol(_ context.Context, r pods.Request) error { return e(r) }

const good = `{"Netns":"/n","PodName":"p","PodNamespace":"ns","IPs":[{"Interface":null,"Address":{"IP":"10.0.0.1","Mask":"/////w=="},"Gateway":"10.0.0.254"}]}`

func post(e Enroller, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	Handler(e, obs.Discard()).ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/cmdadd", strings.NewReader(body)))
	return w
}

func TestAnswers(t *testing.T) {
	var got pods.Request
	ok := enroller(func(r pods.Request) error { got = r; return nil })
	if w := post(ok, good); w.Code != 200 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if got.Name != "p" || got.Namespace != "ns" || got.Netns != "/n" || len(got.IPs) != 1 || got.IPs[0].String() != "10.0.0.1" {
		t.Errorf("%+v", got)
	}
	for _, bad := range []string{
		"", "{", "[]", `{"Netns":"/n"}`, strings.Replace(good, "10.0.0.1", "x", 1), strings.Replace(good, `"/n"`, `""`, 1),
		`{"Netns":"/n","PodName":"p","PodNamespace":"ns","IPs":[]}`,
	} {
		if w := post(ok, bad); w.Code != 400 {
			t.Errorf("%q: %d", bad, w.Code)
		}
	}
	w := post(enroller(func(pods.Request) error { return errors.New("the reason") }), good)
	if w.Code != 500 || !strings.Contains(w.Body.String(), "the reason") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	w = httptest.NewRecorder()
	Handler(ok, obs.Discard()).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/cmdadd", nil))
	if w.Code == 200 {
		t.Error("GET was taken")
	}
}

func TestBodyIsBounded(t *testing.T) {
	body := `{"Netns":"` + strings.Repeat("x", 1<<20) + `"}`
	if w := post(enroller(func(pods.Request) error { return nil }), body); w.Code != 400 {
		t.Errorf("%d", w.Code)
	}
}

func TestListenReplacesStaleSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for range 2 {
		l, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close() // leaves the file, as a killed agent does
	}
}
