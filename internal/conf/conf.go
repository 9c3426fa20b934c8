package conf

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Lookup finds one variable; os.LookupEnv is one.
type Lookup func(name string) (string, bool)

// Prefix marks the names that belong to this project alone, so that a typing
// error in them can be told.
const Prefix = "MARROW_"

// Field describes a variable that was asked for.
type Field struct {
	Name, Default, About string
	Set                  bool // the environment has it
}

// Error is one or more refused settings.
type Error struct{ Problems []error }

func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.Error()
	}
	return "configuration refused: " + strings.Join(lines, "; ")
}

// Unwrap gives the single problems to errors.Is and errors.As.
func (e *Error) Unwrap() []error { return e.Problems }

// ExitCode is 64 (EX_USAGE).
func (e *Error) ExitCode() int { return 64 }

// Reader reads variables and collects what is wrong with them. It is for one
// goroutine.
type Reader struct {
	lookup  Lookup
	environ []string // NAME=value of all variables, for prefixes and unknown names
	fields  map[string]Field
	secret  map[string]bool
	errs    []error
}

// New makes a Reader over any source.
func New(l Lookup, environ []string) *Reader {
	return &Reader{lookup: l, environ: environ, fields: map[string]Field{}, secret: map[string]bool{}}
}

// FromEnv makes a Reader over the process environment.
func FromEnv() *Reader { return New(os.LookupEnv, os.Environ()) }

// FromMap makes a Reader over a fixed set, for tests and embedding.
func FromMap(m map[string]string) *Reader {
	env := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		env = append(env, k+"="+m[k])
	}
	return New(func(n string) (string, bool) { v, ok := m[n]; return v, ok }, env)
}

func (r *Reader) get(name, def string, about []string) (string, bool) {
	v, ok := r.lookup(name)
	r.fields[name] = Field{Name: name, Default: def, About: strings.Join(about, " "), Set: ok}
	return v, ok
}

// Fail adds a problem with a variable, for checks that only the caller knows.
func (r *Reader) Fail(name, value, problem string) {
	if r.secret[name] {
		r.errs = append(r.errs, fmt.Errorf("%s (value hidden): %s", name, problem))
		return
	}
	r.errs = append(r.errs, fmt.Errorf("%s=%q: %s", name, value, problem))
}

// String reads a text; set to the empty string it is empty, not the default.
func (r *Reader) String(name, def string, about ...string) string {
	if v, ok := r.get(name, def, about); ok {
		return v
	}
	return def
}

// Optional reads a text and whether it was set.
func (r *Reader) Optional(name string, about ...string) (string, bool) {
	return r.get(name, "unset", about)
}

// Required reads a text that must be set and not empty.
func (r *Reader) Required(name string, about ...string) string {
	v, _ := r.get(name, "required", about)
	if v == "" {
		r.errs = append(r.errs, fmt.Errorf("%s: must be set (%s)", name, strings.Join(about, " ")))
	}
	return v
}

// Secret reads a text whose value never appears in an error or help text.
func (r *Reader) Secret(name, def string, about ...string) string {
	r.secret[name] = true
	return r.String(name, def, about...)
}

// Enum reads one of a closed set.
func (r *Reader) Enum(name, def string, allowed []string, about ...string) string {
	v := r.String(name, def, about...)
	if !slices.Contains(allowed, v) {
		r.Fail(name, v, "must be one of "+strings.Join(allowed, ", "))
		return def
	}
	return v
}

// Bool reads exactly "true" or "false".
func (r *Reader) Bool(name string, def bool, about ...string) bool {
	v, ok := r.get(name, strconv.FormatBool(def), about)
	switch {
	case !ok:
		return def
	case v == "true":
		return true
	case v == "false":
		return false
	}
	r.Fail(name, v, "must be true or false")
	return def
}

// Duration reads a time: a number with unit (1m30s, 250ms), or a bare number of
// seconds. Negative times are refused.
func (r *Reader) Duration(name string, def time.Duration, about ...string) time.Duration {
	v, ok := r.get(name, def.String(), about)
	if !ok {
		return def
	}
	d, err := parseDuration(v)
	if err != nil {
		r.Fail(name, v, err.Error())
		return def
	}
	return d
}

func parseDuration(v string) (time.Duration, error) {
	if n, err := strconv.ParseUint(v, 10, 32); err == nil {
		return time.Duration(n) * time.Second, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		return 0, errors.New("must be a time such as 90s, 5m or 24h (a bare number is seconds)")
	}
	if d < 0 {
		return 0, errors.New("must not be negative")
	}
	return d, nil
}

// Int reads a decimal number of any sign.
func (r *Reader) Int(name string, def int, about ...string) int {
	v, ok := r.get(name, strconv.Itoa(def), about)
	if !ok {
		return def
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		r.Fail(name, v, "must be a whole number")
		return def
	}
	return n
}

// IntIn reads a number between low and high, both allowed.
func (r *Reader) IntIn(name string, def, low, high int, about ...string) int {
	n := r.Int(name, def, about...)
	if n < low || n > high {
		r.Fail(name, strconv.Itoa(n), fmt.Sprintf("must be between %d and %d", low, high))
		return def
	}
	return n
}

// Uint32 reads a number from 0 to 4294967295; 0x in front means hexadecimal.
func (r *Reader) Uint32(name string, def uint32, about ...string) uint32 {
	v, ok := r.get(name, strconv.FormatUint(uint64(def), 10), about)
	if !ok {
		return def
	}
	n, err := strconv.ParseUint(v, 0, 32)
	if err != nil {
		r.Fail(name, v, "must be a whole number from 0 to 4294967295")
		return def
	}
	return uint32(n)
}

// Port reads a TCP or UDP port; 0 lets the kernel choose.
func (r *Reader) Port(name string, def uint16, about ...string) uint16 {
	return uint16(r.IntIn(name, int(def), 0, 65535, about...)) // bounded by IntIn
}

// IP reads an address; unset or empty gives def, which may be the zero Addr.
func (r *Reader) IP(name string, def netip.Addr, about ...string) netip.Addr {
	v, _ := r.get(name, def.String(), about)
	if v == "" {
		return def
	}
	a, err := netip.ParseAddr(v)
	if err != nil {
		r.Fail(name, v, "must be an IPv4 or IPv6 address")
		return def
	}
	return a.Unmap()
}

// Addr reads host:port with any host, ":15014" included; it is checked, not
// resolved.
func (r *Reader) Addr(name, def string, about ...string) string {
	v := r.String(name, def, about...)
	if v == def {
		return v
	}
	_, after, ok := strings.CutLast(v, ":")
	if !ok {
		r.Fail(name, v, "must be host:port")
		return def
	}
	if _, err := strconv.ParseUint(after, 10, 16); err != nil {
		r.Fail(name, v, "must end in a port from 0 to 65535")
		return def
	}
	return v
}

// Path reads a file name. It is not opened here: files may come later.
func (r *Reader) Path(name, def string, about ...string) string {
	v := r.String(name, def, about...)
	if strings.ContainsRune(v, 0) {
		r.Fail(name, v, "must not contain a NUL byte")
		return def
	}
	return v
}

// List reads comma-separated texts; blanks around them and empty ones vanish.
func (r *Reader) List(name, def string, about ...string) []string {
	var out []string
	for s := range strings.SplitSeq(r.String(name, def, about...), ",") {
		if s = strings.TrimSpace(s); s != "" {
			out = append(out, s)
		}
	}
	return out
}

// WithPrefix reads all variables whose name begins with prefix and returns them
// by the rest of the name.
func (r *Reader) WithPrefix(prefix string, about ...string) map[string]string {
	out := map[string]string{}
	r.fields[prefix+"*"] = Field{Name: prefix + "*", Default: "none", About: strings.Join(about, " ")}
	for _, kv := range r.environ {
		name, val, _ := strings.Cut(kv, "=")
		if rest, ok := strings.CutPrefix(name, prefix); ok && rest != "" {
			r.fields[name] = Field{Name: name, Set: true}
			out[rest] = val
		}
	}
	return out
}

// Known accepts names that somebody else in the process reads.
func (r *Reader) Known(names ...string) {
	for _, n := range names {
		if _, ok := r.fields[n]; !ok {
			r.get(n, "", nil)
		}
	}
}

// Fields lists what was asked for, by name.
func (r *Reader) Fields() []Field {
	out := make([]Field, 0, len(r.fields))
	for _, n := range slices.Sorted(maps.Keys(r.fields)) {
		out = append(out, r.fields[n])
	}
	return out
}

// Err is nil or an *Error with every problem, unknown MARROW_ names included.
// Call it after the last getter.
func (r *Reader) Err() error {
	errs := slices.Clone(r.errs)
	var unknown []string
	for _, kv := range r.environ {
		name, _, _ := strings.Cut(kv, "=")
		if _, ok := r.fields[name]; !ok && strings.HasPrefix(name, Prefix) {
			unknown = append(unknown, name)
		}
	}
	slices.Sort(unknown)
	for _, n := range unknown {
		errs = append(errs, fmt.Errorf("%s: unknown setting%s", n, r.nearest(n)))
	}
	if len(errs) == 0 {
		return nil
	}
	return &Error{Problems: errs}
}

// nearest suggests a known MARROW_ name for a mistyped one.
func (r *Reader) nearest(name string) string {
	best, dist := "", 4
	for _, n := range slices.Sorted(maps.Keys(r.fields)) {
		if strings.HasPrefix(n, Prefix) {
			if d := distance(n, name); d < dist {
				best, dist = n, d
			}
		}
	}
	if best == "" {
		return "; unset it"
	}
	return "; did you mean " + best + "?"
}

// distance is the Levenshtein distance.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diag := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			diag, row[j] = row[j], min(row[j]+1, row[j-1]+1, diag+cost)
		}
	}
	return row[len(b)]
}

// Value reads a variable that an object of the mesh names, such as the tag of a trace; it is no setting of this program.
func Value(name string) (string, bool) { return os.LookupEnv(name) }
