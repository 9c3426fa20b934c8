package obs

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"go.uber.org/zap/zapcore"
)

// Level is the weight of a line.
type Level int8

// The levels, from chatty to silent.
const (
	LevelTrace Level = Level(zapcore.DebugLevel) - 1
	LevelDebug Level = Level(zapcore.DebugLevel)
	LevelInfo  Level = Level(zapcore.InfoLevel)
	LevelWarn  Level = Level(zapcore.WarnLevel)
	LevelError Level = Level(zapcore.ErrorLevel)
	LevelOff   Level = Level(zapcore.FatalLevel) + 1
)

func (l Level) String() string {
	switch l {
	case LevelTrace:
		return "trace"
	case LevelDebug:
		return "debug"
	case LevelInfo:
		return "info"
	case LevelWarn:
		return "warn"
	case LevelError:
		return "error"
	case LevelOff:
		return "off"
	}
	return fmt.Sprintf("level(%d)", int8(l))
}

func parseLevel(s string) (Level, bool) {
	for l := LevelTrace; l <= LevelOff; l++ {
		if strings.EqualFold(l.String(), s) {
			return l, true
		}
	}
	return LevelInfo, false
}

// rule sets the level of a scope and all scopes below it; scope "" is everybody.
type rule struct {
	scope string
	level Level
}

// parseFilter reads "info,access=debug,a::b=off". Names written for Istio's
// ztunnel (with its "ztunnel::" in front) mean the same here.
func parseFilter(s string) ([]rule, error) {
	var rules []rule
	var errs []error
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		scope, lvl, isScope := strings.Cut(part, "=")
		if !isScope {
			scope, lvl = "", part
		}
		scope = strings.TrimPrefix(strings.TrimSpace(scope), "ztunnel::")
		l, ok := parseLevel(strings.TrimSpace(lvl))
		if !ok || isScope && scope == "" || strings.ContainsAny(scope, " \t\n\"") {
			errs = append(errs, fmt.Errorf("log filter part %q: must be LEVEL or SCOPE=LEVEL, levels are error, warn, info, debug, trace, off", part))
			continue
		}
		rules = append(rules, rule{scope, l})
	}
	return rules, errors.Join(errs...)
}

// CheckFilter tells whether NewLogger and Levels.Set would take a filter.
func CheckFilter(s string) error {
	_, err := parseFilter(s)
	return err
}

// gate is the current level of one scope; loggers read it without a lock.
type gate struct {
	scope string
	level atomic.Int32
}

func (g *gate) allows(l zapcore.Level) bool {
	return int32(l) >= g.level.Load() && l < zapcore.Level(LevelOff)
}

// Levels is the filter of all loggers of a process.
type Levels struct {
	mu      sync.Mutex
	initial []rule
	rules   []rule
	gates   map[string]*gate
}

func newLevels(filter string) (*Levels, error) {
	rules, err := parseFilter(filter)
	if err != nil {
		return nil, err
	}
	return &Levels{initial: rules, rules: rules, gates: map[string]*gate{}}, nil
}

func (l *Levels) gate(scope string) *gate {
	l.mu.Lock()
	defer l.mu.Unlock()
	g, ok := l.gates[scope]
	if !ok {
		g = &gate{scope: scope}
		g.level.Store(int32(levelOf(l.rules, scope)))
		l.gates[scope] = g
	}
	return g
}

// levelOf picks the longest rule that covers scope; of equals the last one.
func levelOf(rules []rule, scope string) Level {
	level, best := LevelInfo, -1
	for _, r := range rules {
		covers := r.scope == "" || r.scope == scope || strings.HasPrefix(scope, r.scope+"::")
		if covers && len(r.scope) >= best {
			level, best = r.level, len(r.scope)
		}
	}
	return level
}

// String is the whole filter in force.
func (l *Levels) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return formatRules(l.rules)
}

func formatRules(rules []rule) string {
	base := LevelInfo
	var parts []string
	for _, r := range rules {
		if r.scope == "" {
			base = r.level
		} else {
			parts = append(parts, r.scope+"="+r.level.String())
		}
	}
	return strings.Join(append([]string{base.String()}, parts...), ",")
}

// Set adds rules; with reset it first returns to the start-up filter. A bad
// filter changes nothing.
func (l *Levels) Set(filter string, reset bool) error {
	add, err := parseFilter(filter)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	rules := slices.Clone(l.rules)
	if reset {
		rules = slices.Clone(l.initial)
	}
	for _, r := range add {
		rules = slices.DeleteFunc(rules, func(o rule) bool { return o.scope == r.scope })
		rules = append(rules, r)
	}
	l.rules = rules
	for scope, g := range l.gates {
		g.level.Store(int32(levelOf(rules, scope)))
	}
	return nil
}

// Scopes lists the scopes that have loggers, sorted, with the level of each.
func (l *Levels) Scopes() iter.Seq2[string, string] {
	l.mu.Lock()
	defer l.mu.Unlock()
	type row struct{ scope, level string }
	rows := make([]row, 0, len(l.gates))
	for _, scope := range slices.Sorted(maps.Keys(l.gates)) {
		rows = append(rows, row{scope, Level(l.gates[scope].level.Load()).String()})
	}
	return func(yield func(string, string) bool) {
		for _, r := range rows {
			if !yield(r.scope, r.level) {
				return
			}
		}
	}
}
