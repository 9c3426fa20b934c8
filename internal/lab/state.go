package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// State is the directory of one lab.
type State struct{ Dir string }

// StateOf is the directory of the lab of that name.
func StateOf(root, name string) State { return State{Dir: filepath.Join(root, name)} }

// Socket is where the lab is controlled.
func (s State) Socket() string { return filepath.Join(s.Dir, "control.sock") }

// Objects is the directory of the object store.
func (s State) Objects() string { return filepath.Join(s.Dir, "objects") }

// Logs is the directory of the containers' logs.
func (s State) Logs() string { return filepath.Join(s.Dir, "logs") }

// CA is the directory of the mesh's root certificate and key.
func (s State) CA() string { return filepath.Join(s.Dir, "ca") }

// JWKS is the file of the keys that verify the lab's tokens.
func (s State) JWKS() string { return filepath.Join(s.Dir, "jwks.json") }

// Log is the lab's own log.
func (s State) Log() string { return filepath.Join(s.Dir, "lab.log") }

func (s State) info() string { return filepath.Join(s.Dir, "info.json") }
func (s State) lock() string { return filepath.Join(s.Dir, "lock") }

// Node is the directory of a node's shared sockets, host side.
func (s State) Node(node string) string { return filepath.Join(s.Dir, "nodes", node) }

// Exists reports whether a lab, running or stale, has this directory.
func (s State) Exists() bool {
	_, err := os.Stat(s.lock())
	return err == nil
}

// Lock takes the lab's lock for the life of the returned file. The kernel
// releases it with the process, so that it tells a running lab from a stale
// directory without guessing at process ids.
func (s State) Lock() (*os.File, error) {
	f, err := os.OpenFile(s.lock(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lab's lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lab %s: %w", filepath.Base(s.Dir), ErrRunning)
		}
		return nil, fmt.Errorf("lock %s: %w", s.lock(), err)
	}
	return f, nil
}

// Running reports whether a lab holds the lock.
func (s State) Running() bool {
	if !s.Exists() {
		return false
	}
	f, err := s.Lock()
	if err != nil {
		return errors.Is(err, ErrRunning)
	}
	_ = f.Close()
	return false
}

// WriteInfo keeps the lab's description for `list` and `down`.
func (s State) WriteInfo(i Info) error {
	raw, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the lab's description: %w", err)
	}
	return os.WriteFile(s.info(), append(raw, '\n'), 0o600)
}

// Info reads the lab's description; what is missing stays zero.
func (s State) Info() Info {
	i := Info{Name: filepath.Base(s.Dir)}
	if raw, err := os.ReadFile(s.info()); err == nil {
		_ = json.Unmarshal(raw, &i) // a torn file of a killed lab tells nothing
	}
	i.State, i.Running = s.Dir, s.Running()
	return i
}

// Remove deletes the directory of a lab that does not run, and the labs'
// common directory when this was the last.
func (s State) Remove() error {
	if s.Running() {
		return fmt.Errorf("lab %s: %w", filepath.Base(s.Dir), ErrRunning)
	}
	if err := os.RemoveAll(s.Dir); err != nil {
		return fmt.Errorf("remove the lab's directory: %w", err)
	}
	// Fails while other labs live there, which is what is wanted.
	_ = os.Remove(filepath.Dir(s.Dir))
	return nil
}

// ErrRunning says that a lab of that name runs already.
var ErrRunning = errors.New("a lab of this name is running; end it with `marrow lab down` or give another --name")

// ErrNoLab says that there is no such lab.
var ErrNoLab = errors.New("no such lab is running; start one with `marrow lab up -f DIR`")

// List describes all labs under root, running or stale; "" = DefaultRoot().
func List(root string) ([]Info, error) {
	if root == "" {
		root = DefaultRoot()
	}
	entries, err := os.ReadDir(root)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list labs: %w", err)
	}
	var out []Info
	for _, e := range entries {
		if s := StateOf(root, e.Name()); e.IsDir() && s.Exists() {
			out = append(out, s.Info())
		}
	}
	slices.SortFunc(out, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}
