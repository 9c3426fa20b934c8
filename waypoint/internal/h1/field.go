package h1

import (
	"net/http"
	"strconv"

	"golang.org/x/net/http/httpguts"
)

// statusLine is "200 OK".
func statusLine(status int) string {
	if status == http.StatusOK {
		return "200 OK"
	}
	text := http.StatusText(status)
	if text == "" {
		text = "status code " + strconv.Itoa(status)
	}
	return strconv.Itoa(status) + " " + text
}

// appendField writes a header. A name that is none is left out; what would end
// the line becomes a space, so no value can become a header or a request.
func appendField(b []byte, name string, values []string) []byte {
	if len(values) == 0 || !httpguts.ValidHeaderFieldName(name) {
		return b
	}
	for _, v := range values {
		b = append(append(b, name...), ": "...)
		from := len(b)
		b = append(b, v...)
		for i := from; i < len(b); i++ {
			if b[i] == '\r' || b[i] == '\n' || b[i] == 0 {
				b[i] = ' '
			}
		}
		b = append(b, "\r\n"...)
	}
	return b
}
