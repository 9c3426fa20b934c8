package obs

import (
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"go.uber.org/zap/zapcore"
)

const timeFormat = "2006-01-02T15:04:05.000000Z"

// output turns entries into lines. It is shared by all loggers of a process.
type output struct {
	w    zapcore.WriteSyncer // locked: one Write is one line
	json bool
	now  func() time.Time
	pool sync.Pool
}

func (o *output) line(l zapcore.Level, scope, msg string, with, fields []Field) error {
	buf, _ := o.pool.Get().(*[]byte)
	if buf == nil {
		buf = new(make([]byte, 0, 512))
	}
	b := (*buf)[:0]
	if o.json {
		b = o.appendJSON(b, l, scope, msg, with, fields)
	} else {
		b = o.appendPlain(b, l, scope, msg, with, fields)
	}
	_, err := o.w.Write(b)
	*buf = b
	o.pool.Put(buf)
	return err
}

// appendPlain: time TAB level TAB scope TAB message TAB k=v k=v
func (o *output) appendPlain(b []byte, l zapcore.Level, scope, msg string, with, fields []Field) []byte {
	b = o.now().UTC().AppendFormat(b, timeFormat)
	b = append(b, '\t')
	b = append(b, Level(l).String()...)
	b = append(b, '\t')
	b = append(b, scope...)
	b = append(b, '\t')
	b = appendClean(b, msg)
	sep := byte('\t')
	for _, set := range [2][]Field{with, fields} {
		for i := range set {
			if set[i].Type == zapcore.SkipType {
				continue
			}
			b = append(b, sep)
			sep = ' '
			b = append(b, set[i].Key...)
			b = append(b, '=')
			b = appendValue(b, &set[i], false)
		}
	}
	return append(b, '\n')
}

func (o *output) appendJSON(b []byte, l zapcore.Level, scope, msg string, with, fields []Field) []byte {
	b = append(b, `{"level":"`...)
	b = append(b, Level(l).String()...)
	b = append(b, `","time":"`...)
	b = o.now().UTC().AppendFormat(b, timeFormat)
	b = append(b, `","scope":`...)
	b = appendJSONString(b, scope)
	b = append(b, `,"message":`...)
	b = appendJSONString(b, msg)
	for _, set := range [2][]Field{with, fields} {
		for i := range set {
			if set[i].Type == zapcore.SkipType {
				continue
			}
			b = append(b, ',')
			b = appendJSONString(b, set[i].Key)
			b = append(b, ':')
			b = appendValue(b, &set[i], true)
		}
	}
	return append(b, '}', '\n')
}

// appendClean writes a message on one line: control characters become escapes.
func appendClean(b []byte, s string) []byte {
	for _, r := range s {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			q := strconv.QuoteRune(r)
			b = append(b, q[1:len(q)-1]...)
			continue
		}
		b = utf8.AppendRune(b, r)
	}
	return b
}

func appendJSONString(b []byte, s string) []byte {
	q, err := json.Marshal(s)
	if err != nil { // cannot be: a string always encodes
		return append(b, `""`...)
	}
	return append(b, q...)
}

// appendValue writes a field's value: numbers and booleans bare, addresses bare
// (quoted in JSON), everything else as a quoted text.
func appendValue(b []byte, f *Field, asJSON bool) []byte {
	text := func(s string) []byte {
		if asJSON {
			return appendJSONString(b, s)
		}
		return strconv.AppendQuote(b, s)
	}
	switch f.Type {
	case zapcore.StringType:
		return text(f.String)
	case zapcore.BoolType:
		return strconv.AppendBool(b, f.Integer == 1)
	case zapcore.Int64Type, zapcore.Int32Type, zapcore.Int16Type, zapcore.Int8Type:
		return strconv.AppendInt(b, f.Integer, 10)
	case zapcore.Uint64Type, zapcore.Uint32Type, zapcore.Uint16Type, zapcore.Uint8Type:
		return strconv.AppendUint(b, uint64(f.Integer), 10) // zap stores the bits
	case zapcore.Float64Type:
		return appendFloat(b, math.Float64frombits(uint64(f.Integer))) // zap stores the bits
	case zapcore.DurationType:
		return text(time.Duration(f.Integer).String())
	case zapcore.ErrorType, zapcore.StringerType:
		return text(fmt.Sprint(f.Interface))
	default: // values of other kinds are told apart by their Go type below
	}
	switch v := f.Interface.(type) {
	case netip.AddrPort:
		return quoteIf(asJSON, b, v.AppendTo)
	case netip.Addr:
		return quoteIf(asJSON, b, v.AppendTo)
	case nil:
		return text("")
	}
	// The rare kinds (lists, structs) go through zap's own field logic.
	m := zapcore.NewMapObjectEncoder()
	f.AddTo(m)
	v := m.Fields[f.Key]
	if asJSON {
		if j, err := json.Marshal(v); err == nil {
			return append(b, j...)
		}
	}
	return text(fmt.Sprint(v))
}

// quoteIf writes an address, which needs no escapes; a zone is the one part that
// is not ours.
func quoteIf(quote bool, b []byte, appendTo func([]byte) []byte) []byte {
	if !quote {
		return appendTo(b)
	}
	return appendJSONString(b, string(appendTo(nil)))
}

func appendFloat(b []byte, v float64) []byte {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return strconv.AppendQuote(b, strconv.FormatFloat(v, 'g', -1, 64))
	}
	return strconv.AppendFloat(b, v, 'g', -1, 64)
}
