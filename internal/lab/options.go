package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/marrowmesh/marrow/internal/conf"
)

// DefaultName is the name of a lab that was given none.
const DefaultName = "default"

// RootVariable is the environment variable that moves the labs' directory.
const RootVariable = "MARROW_LAB_DIR"

// Commands replaces components by other programs. Each is a command line in
// words; empty means our own binary beside the running one.
type Commands struct {
	Ztunnel      []string `json:"ztunnel,omitempty"`
	CNI          []string `json:"cni,omitempty"`
	Waypoint     []string `json:"waypoint,omitempty"`
	ControlPlane []string `json:"control_plane,omitempty"`
}

// Options say what lab to start.
type Options struct {
	Name  string   // "" = DefaultName; letters, digits and dashes
	Nodes int      // 0 = 2
	Files []string // manifests to begin with: files, directories, "-"
	Root  string   // where labs keep their state; "" = DefaultRoot()

	Commands Commands
	NoMesh   bool     // pods and services only, no component
	Env      []string // added to every component's environment, NAME=value
	Zones    []string // topology of node i: "region/zone"; fewer = the rest have "lab/zone-<i>"
	BinDir   string   // our binaries; "" = the directory of the running program
	NoIPv6   bool     // IPv4 only, also where the host has IPv6

	Detach  bool          // the lab outlives the caller
	Timeout time.Duration // for the start; 0 = 2 minutes
	User    bool          // use a user namespace, also as root

	// Progress is told what happens; nil = nobody.
	Progress func(Progress)
}

// Limits of a lab. More nodes would leave the address plan.
const (
	MaxNodes   = 20
	maxNameLen = 24
)

// Normalize fills in the defaults and refuses what cannot work.
func (o *Options) Normalize() error {
	if o.Name == "" {
		o.Name = DefaultName
	}
	if o.Nodes == 0 {
		o.Nodes = 2
	}
	if o.Timeout == 0 {
		o.Timeout = 2 * time.Minute
	}
	if o.Root == "" {
		o.Root = DefaultRoot()
	}
	var errs []error
	if err := CheckName(o.Name); err != nil {
		errs = append(errs, err)
	}
	if o.Nodes < 1 || o.Nodes > MaxNodes {
		errs = append(errs, fmt.Errorf("nodes %d: must be 1 to %d", o.Nodes, MaxNodes))
	}
	for _, kv := range o.Env {
		if !strings.Contains(kv, "=") {
			errs = append(errs, fmt.Errorf("environment %q: must be NAME=value", kv))
		}
	}
	if o.BinDir == "" {
		self, err := os.Executable()
		if err != nil {
			errs = append(errs, fmt.Errorf("find the running program: %w", err))
		}
		o.BinDir = filepath.Dir(self)
	}
	return errors.Join(errs...)
}

// CheckName refuses a lab name that would not fit into file and socket names.
func CheckName(name string) error {
	if len(name) > maxNameLen || !regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`).MatchString(name) {
		return fmt.Errorf("lab name %q: must be 1 to %d lower-case letters, digits and dashes", name, maxNameLen)
	}
	return nil
}

// DefaultRoot is $MARROW_LAB_DIR, else /run/marrow-lab for root, else
// $XDG_RUNTIME_DIR/marrow-lab, else /tmp/marrow-lab-<uid>.
func DefaultRoot() string {
	env := conf.FromEnv()
	if dir := env.Path(RootVariable, ""); dir != "" {
		return dir
	}
	uid := os.Getuid()
	if uid == 0 {
		return "/run/marrow-lab"
	}
	if dir := env.Path("XDG_RUNTIME_DIR", ""); dir != "" {
		return filepath.Join(dir, "marrow-lab")
	}
	return fmt.Sprintf("/tmp/marrow-lab-%d", uid)
}

// SplitWords cuts a command line as a shell would: blanks separate, quotes and
// backslashes keep together. Nothing is expanded.
func SplitWords(line string) ([]string, error) {
	var words []string
	var cur strings.Builder
	in, quote := false, rune(0)
	runes := []rune(line)
	for i := 0; i < len(runes); i++ {
		c := runes[i]
		switch {
		case quote == '\'' && c != '\'', quote == '"' && c != '"' && c != '\\':
			cur.WriteRune(c)
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '\'' || c == '"'):
			quote, in = c, true
		case c == '\\':
			if i+1 == len(runes) {
				return nil, fmt.Errorf("command %q ends in a backslash", line)
			}
			i++
			cur.WriteRune(runes[i])
			in = true
		case c == ' ' || c == '\t' || c == '\n':
			if in {
				words = append(words, cur.String())
				cur.Reset()
				in = false
			}
		default:
			cur.WriteRune(c)
			in = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("command %q has an open quote %c", line, quote)
	}
	if in {
		words = append(words, cur.String())
	}
	return words, nil
}
