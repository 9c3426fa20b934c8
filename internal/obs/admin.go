package obs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"maps"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"runtime"
	runtimepprof "runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"time"
)

// AdminConfig is what the admin pages of one binary show.
type AdminConfig struct {
	Title  string
	Levels *Levels                 // nil: no /logging
	Quit   func()                  // nil: no /quitquitquit
	Dump   func() (any, error)     // nil: no /config_dump
	Local  map[string]http.Handler // more pages by path, for tools on this machine; they go before those above
	Pages  map[string]http.Handler // more pages by path, answered under any host name
}

// NewAdmin makes the admin pages. They belong on loopback: whoever reaches them
// can stop the process.
func NewAdmin(c AdminConfig) http.Handler {
	pages := map[string]http.Handler{
		"/debug/pprof/profile": http.HandlerFunc(cpuProfile),
		"/debug/pprof/heap":    http.HandlerFunc(heapProfile),
		"/debug/pprof/":        http.HandlerFunc(pprof.Index),
		"/debug/pprof/trace":   http.HandlerFunc(pprof.Trace),
	}
	if c.Dump != nil {
		pages["/config_dump"] = dumpPage(c.Dump)
	}
	if c.Levels != nil {
		pages["/logging"] = loggingPage(c.Levels)
	}
	if c.Quit != nil {
		pages["/quitquitquit"] = quitPage(c.Quit)
	}
	maps.Copy(pages, c.Local)
	for path, h := range pages {
		pages[path] = localOnly(h)
	}
	maps.Copy(pages, c.Pages)
	mux := http.NewServeMux()
	for path, h := range pages {
		mux.Handle(path, h)
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path != "/" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = fmt.Fprintf(w, "<!DOCTYPE html><title>%s</title><h1>%[1]s</h1><ul>\n", html.EscapeString(c.Title))
		for _, p := range slices.Sorted(maps.Keys(pages)) {
			_, _ = fmt.Fprintf(w, "<li><a href=%q>%s</a></li>\n", p, html.EscapeString(p))
		}
		_, _ = fmt.Fprint(w, "</ul>\n")
	})
	return mux
}

// localOnly refuses requests that a web page made a browser send: cross-site ones
// by what the browser says of them, those after a DNS rebinding by the name that
// they ask for. The admin port is for tools on this machine.
func localOnly(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Origin") != "" || req.Header.Get("Sec-Fetch-Site") == "cross-site" || !localName(req.Host) {
			http.Error(w, "the admin port does not answer web pages", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, req)
	})
}

// localName accepts addresses and localhost, which no foreign page can own.
func localName(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil || host == "" || strings.EqualFold(host, "localhost")
}

func dumpPage(dump func() (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		v, err := dump()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		// Encoded whole before the first byte is sent, so that an error is one.
		var buf bytes.Buffer
		e := json.NewEncoder(&buf)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		if err := e.Encode(v); err != nil {
			http.Error(w, "encode dump: "+err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(buf.Bytes())
	})
}

func loggingPage(levels *Levels) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method != http.MethodPost {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		q := req.URL.Query()
		if q.Has("reset") || q.Has("level") {
			if err := levels.Set(q.Get("level"), q.Has("reset")); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
		}
		w.Header().Set("Content-Type", "text/plain")
		_, _ = fmt.Fprintf(w, "current log level is %s\n", levels)
	})
}

func quitPage(quit func()) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method != http.MethodPost {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		w.Header().Set("Content-Type", "text/plain")
		_, _ = fmt.Fprint(w, "shutdown now\n")
		quit()
	})
}

// queryInt reads a number in [low, high]; false when it was refused.
func queryInt(w http.ResponseWriter, req *http.Request, name string, def, low, high int) (int, bool) {
	s := req.URL.Query().Get(name)
	if s == "" {
		return def, true
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < low || n > high {
		http.Error(w, fmt.Sprintf("%s=%q: must be a number from %d to %d", name, s, low, high), http.StatusBadRequest)
		return 0, false
	}
	return n, true
}

func cpuProfile(w http.ResponseWriter, req *http.Request) {
	seconds, ok := queryInt(w, req, "seconds", 10, 1, 300)
	if !ok {
		return
	}
	// Go samples at its own fixed rate; the parameter is checked, as callers of
	// Istio's endpoint expect, and then has no effect.
	if _, ok := queryInt(w, req, "frequency", 100, 1, 1000); !ok {
		return
	}
	// Longer than the server lets an answer take: say so.
	if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Duration(seconds)*time.Second + writeTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	var buf bytes.Buffer
	if err := runtimepprof.StartCPUProfile(&buf); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	t := time.NewTimer(time.Duration(seconds) * time.Second)
	select {
	case <-t.C:
	case <-req.Context().Done():
		t.Stop()
	}
	runtimepprof.StopCPUProfile()
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = w.Write(buf.Bytes())
}

func heapProfile(w http.ResponseWriter, _ *http.Request) {
	runtime.GC()
	w.Header().Set("Content-Type", "application/octet-stream")
	if err := runtimepprof.Lookup("heap").WriteTo(w, 0); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}
