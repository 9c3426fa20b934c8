package h1

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

// outgoing is the length of a request's body; negative = it is not known.
func outgoing(r *http.Request) int64 {
	switch {
	case r.Body == nil || r.Body == http.NoBody:
		return 0
	case r.ContentLength != 0:
		return r.ContentLength
	}
	return -1
}

// appendRequest writes the head of a request. What would make it another
// request than was meant is an error.
func appendRequest(b []byte, r *http.Request) ([]byte, int64, error) {
	size := outgoing(r)
	target := r.URL.RequestURI()
	host := r.Host
	if host == "" {
		host = r.URL.Host
	}
	for i := range len(target) {
		if c := target[i]; c <= ' ' || c == 0x7f {
			return b, 0, fmt.Errorf("request target %q: a blank or control character", target)
		}
	}
	if !httpguts.ValidHostHeader(host) {
		return b, 0, fmt.Errorf("host %q cannot be asked for", host)
	}
	method := r.Method
	if method == "" {
		method = http.MethodGet
	}
	if !httpguts.ValidHeaderFieldName(method) {
		return b, 0, fmt.Errorf("method %q is no token", method)
	}
	b = append(append(b, method...), ' ')
	b = append(append(b, target...), " HTTP/1.1\r\nHost: "...)
	b = append(append(b, host...), "\r\n"...)
	for name, values := range r.Header {
		switch name {
		case "Host", "Content-Length", "Transfer-Encoding", "Trailer":
			continue
		case "User-Agent":
			if len(values) == 0 || values[0] == "" {
				continue
			}
		}
		if !httpguts.ValidHeaderFieldName(name) {
			return b, 0, fmt.Errorf("header name %q is no token", name)
		}
		for _, v := range values {
			if !httpguts.ValidHeaderFieldValue(v) {
				return b, 0, fmt.Errorf("header %s: %q cannot be sent", name, v)
			}
		}
		b = appendField(b, name, values)
	}
	switch {
	case size > 0 || size == 0 && (method == http.MethodPost || method == http.MethodPut || method == http.MethodPatch):
		b = strconv.AppendInt(append(b, "Content-Length: "...), size, 10)
		b = append(b, "\r\n"...)
	case size < 0:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
		if names := trailerNames(r); len(names) > 0 {
			b = append(append(append(b, "Trailer: "...), strings.Join(names, ",")...), "\r\n"...)
		}
	}
	if r.Close && !httpguts.HeaderValuesContainsToken(r.Header["Connection"], "close") {
		b = append(b, "Connection: close\r\n"...)
	}
	return append(b, "\r\n"...), size, nil
}

func trailerNames(r *http.Request) (names []string) {
	for name := range r.Trailer {
		if httpguts.ValidTrailerHeader(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// send writes the head, and begins to send the body if there is one.
func (x *exchange) send() error {
	if x.size == 0 {
		_, err := x.cc.c.Write(x.cc.out)
		x.trim()
		return err
	}
	x.sent = make(chan error, 1)
	var wait <-chan struct{}
	if x.cc.p.ContinueTimeout > 0 && httpguts.HeaderValuesContainsToken(x.req.Header["Expect"], "100-continue") {
		x.go100 = make(chan struct{})
		wait = x.go100
	}
	if wait != nil || x.size < 0 || x.size > gathered { // the head leaves alone, as nobody knows when the rest comes
		if _, err := x.cc.c.Write(x.cc.out); err != nil {
			return err
		}
		x.cc.out = x.cc.out[:0]
	}
	go func() { // ends with the body, or with the connection
		err := x.sendBody(wait)
		if err != nil {
			x.cc.drop()
		}
		_ = x.req.Body.Close()
		x.sent <- err
	}()
	return nil
}

func (x *exchange) trim() {
	if cap(x.cc.out) > gathered {
		x.cc.out = nil
	}
}

// errShortBody is a body that is not as long as was declared.
var errShortBody = errors.New("the request's body ended before its declared length")

func (x *exchange) sendBody(wait <-chan struct{}) error {
	if wait != nil {
		t := time.NewTimer(x.cc.p.ContinueTimeout)
		defer t.Stop()
		select {
		case <-wait:
		case <-t.C:
		case <-x.req.Context().Done():
			return x.req.Context().Err()
		}
	}
	buf := make([]byte, 16<<10)
	left := x.size
	for {
		n, err := x.req.Body.Read(buf)
		if n > 0 {
			if left >= 0 {
				if int64(n) > left {
					return errors.New("the request's body is longer than declared")
				}
				left -= int64(n)
			}
			if werr := x.piece(buf[:n]); werr != nil {
				return werr
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			if left > 0 {
				return errShortBody
			}
			return x.last()
		case err != nil:
			return err
		case left == 0:
			return x.drained(buf)
		}
	}
}

// drained looks for the end of a body that has reached its length: whoever
// waits for it learns that the request is whole.
func (x *exchange) drained(buf []byte) error {
	for {
		n, err := x.req.Body.Read(buf[:1])
		switch {
		case n > 0:
			return errors.New("the request's body is longer than declared")
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// piece sends a part of the body, with the head if that has not left.
func (x *exchange) piece(p []byte) error {
	out := x.cc.out
	if x.size < 0 {
		out = append(strconv.AppendInt(out, int64(len(p)), 16), "\r\n"...)
	}
	out = append(out, p...)
	if x.size < 0 {
		out = append(out, "\r\n"...)
	}
	_, err := x.cc.c.Write(out)
	x.cc.out = out[:0]
	x.trim()
	return err
}

// last ends a chunked body, or sends the head of one that was empty.
func (x *exchange) last() error {
	out := x.cc.out
	if x.size < 0 {
		out = append(out, "0\r\n"...)
		for name, values := range x.req.Trailer {
			if httpguts.ValidTrailerHeader(name) {
				out = appendField(out, name, values)
			}
		}
		out = append(out, "\r\n"...)
	}
	x.cc.out = out[:0]
	if len(out) == 0 {
		return nil
	}
	_, err := x.cc.c.Write(out)
	return err
}
