package phases

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/marrowmesh/marrow/waypoint/internal/table"
)

// upgrade passes a protocol change through: the upstream is asked, and only its 101 turns the connection into bytes.
func (w *forwarding) upgrade() error {
	if !w.mayUpgrade(w.f) {
		return upgradeRefused()
	}
	if w.hasBody() {
		// Bytes before the 101 belong to no protocol; taking them as either one is how requests are smuggled.
		return &failure{status: http.StatusBadRequest, flag: "DPE", detail: "upgrade_with_body", close: true}
	}
	a, err := w.tryUpgrade()
	defer a.finish()
	if err != nil {
		return err
	}
	if a.resp.StatusCode != http.StatusSwitchingProtocols {
		return w.deliver(a)
	}
	return w.switchProtocol(a)
}

// mayUpgrade says whether the protocol change that the client asks for is passed on.
func (x *exchange) mayUpgrade(f *table.Forward) bool {
	allowed := x.chain.WebSocket
	if f.WebSocket != nil {
		allowed = *f.WebSocket
	}
	return allowed && strings.EqualFold(x.facts.upgrade, "websocket") && x.r.ProtoMajor == 1
}

func upgradeRefused() *failure {
	return &failure{status: http.StatusForbidden, detail: "upgrade_failed", body: "this upgrade is not allowed here"}
}

func (w *forwarding) tryUpgrade() (*attempt, error) {
	w.r.Header.Set("Connection", "Upgrade")
	w.r.Header.Set("Upgrade", w.facts.upgrade)
	return w.try(1)
}

func (w *forwarding) switchProtocol(a *attempt) error {
	up, ok := a.resp.Body.(io.ReadWriteCloser)
	if !ok {
		return &failure{status: http.StatusBadGateway, flag: "UPE", detail: "upgrade_failed", err: errors.New("the upstream's connection cannot be written to")}
	}
	down, early, err := http.NewResponseController(w.w).Hijack()
	if err != nil {
		return &failure{status: http.StatusInternalServerError, detail: "upgrade_failed", err: err}
	}
	defer func() { _, _ = down.Close(), up.Close() }()
	h := a.resp.Header.Clone()
	w.mutateResponse(h)
	w.sent, w.facts.status, w.facts.response, w.facts.detail = true, http.StatusSwitchingProtocols, h, "via_upstream"
	if _, err = fmt.Fprintf(early, "HTTP/1.1 101 %s\r\n", http.StatusText(http.StatusSwitchingProtocols)); err == nil {
		_ = h.Write(early)
		_, _ = early.WriteString("\r\n")
		err = early.Flush()
	}
	if err != nil {
		return &failure{flag: "DC", detail: "downstream_remote_disconnect", err: err}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		n, _ := io.Copy(up, early) // early's reader is the connection, after what was buffered
		w.facts.received.Add(n)
		closeWrite(up)
	})
	n, _ := io.Copy(down, up)
	w.facts.sentBytes += n
	closeWrite(down)
	stop := func() { _, _ = down.Close(), up.Close() }
	if w.h.draining.Load() {
		stop()
	}
	wg.Wait()
	return nil
}

func closeWrite(c any) {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		_ = h.CloseWrite() // the other direction goes on
		return
	}
	if h, ok := c.(io.Closer); ok {
		_ = h.Close()
	}
}
