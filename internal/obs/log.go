package obs

import (
	"fmt"
	"io"
	"net/netip"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Field is one key and value of a log line.
type Field = zapcore.Field

// F makes a field of any value. Addresses, numbers and booleans are printed
// bare, everything else as a quoted text.
func F(key string, v any) Field {
	switch v := v.(type) {
	case netip.AddrPort, netip.Addr:
		return Field{Key: key, Type: zapcore.ReflectType, Interface: v}
	case error:
		return zap.String(key, v.Error())
	case time.Duration:
		return zap.Duration(key, v)
	case fmt.Stringer:
		return zap.Stringer(key, v)
	}
	return zap.Any(key, v)
}

// Err is the field `error`.
func Err(err error) Field { return zap.NamedError("error", err) }

// Logger writes lines of one scope.
type Logger struct {
	z      *zap.Logger
	scope  string
	levels *Levels
}

// NewLogger makes the root logger. format is "plain" or "json"; filter is a list
// such as "info,access=debug".
func NewLogger(w io.Writer, format, filter string) (*Logger, *Levels, error) {
	if format != "plain" && format != "json" {
		return nil, nil, fmt.Errorf("log format %q: must be plain or json", format)
	}
	levels, err := newLevels(filter)
	if err != nil {
		return nil, nil, err
	}
	out := &output{w: zapcore.Lock(zapcore.AddSync(w)), json: format == "json", now: time.Now}
	l := &Logger{levels: levels}
	l.z = zap.New(&core{out: out, gate: levels.gate("")}, zap.WithFatalHook(zapcore.WriteThenPanic))
	return l, levels, nil
}

// Discard is a logger that writes nothing.
func Discard() *Logger {
	l, _, err := NewLogger(io.Discard, "plain", "off")
	if err != nil {
		panic(err) // the arguments are constants
	}
	return l
}

// Named makes a logger for a scope, nested names are joined by "::".
func (l *Logger) Named(scope string) *Logger {
	full := scope
	if l.scope != "" {
		full = l.scope + "::" + scope
	}
	c := l.z.Core().(*core) // made only by NewLogger and here
	gate := l.levels.gate(full)
	return &Logger{z: zap.New(&core{out: c.out, gate: gate, with: c.with}), scope: full, levels: l.levels}
}

// With makes a logger whose lines all carry the fields.
func (l *Logger) With(fields ...Field) *Logger {
	return &Logger{z: l.z.With(fields...), scope: l.scope, levels: l.levels}
}

// Enabled tells whether lines of the level are written, to spare the making of
// expensive fields.
func (l *Logger) Enabled(level Level) bool { return l.z.Core().Enabled(zapcore.Level(level)) }

// Error, Warn, Info, Debug and Trace write a line of their level.
func (l *Logger) Error(msg string, fields ...Field) { l.write(LevelError, msg, fields) }

// Warn writes a line of level warn.
func (l *Logger) Warn(msg string, fields ...Field) { l.write(LevelWarn, msg, fields) }

// Info writes a line of level info.
func (l *Logger) Info(msg string, fields ...Field) { l.write(LevelInfo, msg, fields) }

// Debug writes a line of level debug.
func (l *Logger) Debug(msg string, fields ...Field) { l.write(LevelDebug, msg, fields) }

// Trace writes a line of level trace.
func (l *Logger) Trace(msg string, fields ...Field) { l.write(LevelTrace, msg, fields) }

func (l *Logger) write(level Level, msg string, fields []Field) {
	if ce := l.z.Check(zapcore.Level(level), msg); ce != nil {
		ce.Write(fields...)
	}
}

// core is zap's seam: it decides by the scope's gate and writes our formats.
type core struct {
	out  *output
	gate *gate
	with []Field
}

func (c *core) Enabled(l zapcore.Level) bool { return c.gate.allows(l) }

func (c *core) With(f []Field) zapcore.Core {
	with := make([]Field, 0, len(c.with)+len(f))
	return &core{out: c.out, gate: c.gate, with: append(append(with, c.with...), f...)}
}

func (c *core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.gate.allows(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *core) Write(e zapcore.Entry, f []Field) error {
	return c.out.line(e.Level, c.gate.scope, e.Message, c.with, f)
}

func (c *core) Sync() error { return nil }
