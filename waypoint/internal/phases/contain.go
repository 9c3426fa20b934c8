package phases

import (
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"

	"github.com/marrowmesh/marrow/internal/obs"
)

// contain keeps a mistake of ours to the request that met it: all others of this process go on. It is deferred.
func (x *exchange) contain() {
	p := recover()
	if p == nil {
		return
	}
	err, ok := p.(error)
	if ok && errors.Is(err, http.ErrAbortHandler) {
		x.facts.broken = true
		return
	}
	x.h.cfg.Log.Error("a request met a mistake in this program and was ended; please report it", obs.F("chain", x.facts.chain), obs.F("path", x.q.Path),
		obs.F("panic", fmt.Sprint(p)), obs.F("stack", string(debug.Stack())))
	x.answer(&failure{status: http.StatusInternalServerError, detail: "internal_error"})
}

// sound refuses an answer that is none: no final one has a status below 200, and what follows a 101 that nobody asked for is
// no HTTP, which clients must not take for answers. net/http only asks for three digits.
func (a *attempt) sound(req *http.Request) error {
	s := a.resp.StatusCode
	if s >= http.StatusOK || s == http.StatusSwitchingProtocols && req.Header["Upgrade"] != nil {
		return nil
	}
	_ = a.resp.Body.Close()
	a.resp = nil
	return fmt.Errorf("malformed HTTP response: status %03d", s)
}
