package h1

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
)

const emptyLine = "\r\n\r\n"

var errShortHead = errors.New("the connection ended within a header")

// readLines reads lines up to an empty one, which is the last.
func readLines(br *bufio.Reader, limit int) (string, error) {
	var text []byte
	for begin := 0; ; {
		piece, err := br.ReadSlice('\n')
		text = append(text, piece...)
		switch {
		case len(text) > limit:
			return "", &statusError{http.StatusRequestHeaderFieldsTooLarge, "request header is too large"}
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil:
			return "", fmt.Errorf("%w: %w", errShortHead, err)
		case !bytes.HasSuffix(text, []byte("\r\n")):
			return "", bad("a line that does not end in CR LF")
		case len(text) == begin+len("\r\n"):
			return string(text), nil
		}
		begin = len(text)
	}
}

// measuredBody is a body of a known length.
type measuredBody struct {
	br   *bufio.Reader
	left int64
}

func (b *measuredBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.br.Read(p)
	b.left -= int64(n)
	switch {
	case b.left == 0:
		err = io.EOF
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// Close implements io.Closer.
func (b *measuredBody) Close() error { return nil }

// maxTrailer is how many bytes of trailers there may be.
const maxTrailer = 16 << 10

// chunkedBody is a body in chunks, and the trailers behind it.
type chunkedBody struct {
	src io.Reader
	br  *bufio.Reader
	req *http.Request
	err error
}

func (b *chunkedBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.src.Read(p)
	if errors.Is(err, io.EOF) {
		text, lineErr := readLines(b.br, maxTrailer)
		if lineErr == nil && len(text) > len("\r\n") {
			lineErr = parseTrailer(b.req, text)
		}
		if lineErr != nil {
			err = lineErr
		}
	}
	b.err = err
	return n, err
}

// Close implements io.Closer.
func (b *chunkedBody) Close() error { return nil }
