package proc

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// initName is the argv[0] under which a process knows that it is to become
	// a container.
	initName = "marrow-pod-init"

	configFD = 3 // initConfig comes in
	reportFD = 4 // an error goes out; closed by a successful execve
)

// initConfig is the part of Spec that the new process needs.
type initConfig struct {
	Argv       []string `json:"argv"`
	Dir        string   `json:"dir"`
	ResolvConf []byte   `json:"resolvConf,omitempty"`
	Files      []File   `json:"files,omitempty"`
	Mounts     []Mount  `json:"mounts,omitempty"`
	OwnProc    bool     `json:"ownProc,omitempty"`
}

func initConfigOf(s Spec) initConfig {
	return initConfig{Argv: s.Argv, Dir: s.dir(), ResolvConf: s.ResolvConf, Files: s.Files, Mounts: s.Mounts, OwnProc: !s.ShareProc}
}

// MaybeInit must be called first in main, beside sandbox.MaybeInit. In a
// process that Start made it becomes the container's program and does not
// return; in any other it returns at once.
func MaybeInit() {
	if len(os.Args) != 1 || os.Args[0] != initName {
		return
	}
	syscall.CloseOnExec(configFD)
	syscall.CloseOnExec(reportFD)
	err := becomeProgram()
	report := os.NewFile(reportFD, "report pipe")
	_, _ = report.WriteString(err.Error()) // without a reader there is nobody to tell
	os.Exit(125)
}

// becomeProgram returns only an error.
func becomeProgram() error {
	var cfg initConfig
	in := os.NewFile(configFD, "config pipe")
	if err := json.NewDecoder(in).Decode(&cfg); err != nil {
		return fmt.Errorf("read the container's configuration: %w", err)
	}
	if err := in.Close(); err != nil {
		return fmt.Errorf("close the configuration pipe: %w", err)
	}
	if err := cfg.mount(); err != nil {
		return err
	}
	if err := os.Chdir(cfg.Dir); err != nil {
		return fmt.Errorf("working directory %s: %w", cfg.Dir, err)
	}
	env := syscall.Environ()
	path, err := lookPath(cfg.Argv[0], env)
	if err != nil {
		return err
	}
	if err := syscall.Exec(path, cfg.Argv, env); err != nil {
		return fmt.Errorf("run %s: %w", path, err)
	}
	return nil
}

// lookPath finds the program as a shell would, in the PATH of env.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, executable(name)
	}
	path := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, e := range env {
		if value, ok := strings.CutPrefix(e, "PATH="); ok {
			path = value
		}
	}
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			continue
		}
		if full := filepath.Join(dir, name); executable(full) == nil {
			return full, nil
		}
	}
	return "", fmt.Errorf("command %q is in no directory of PATH %q; pods see the host's programs", name, path)
}

func executable(file string) error {
	info, err := os.Stat(file)
	switch {
	case err != nil:
		return fmt.Errorf("command %s: %w", file, err)
	case info.IsDir():
		return fmt.Errorf("command %s is a directory", file)
	case info.Mode()&0o111 == 0:
		return fmt.Errorf("command %s is not executable: %w", file, fs.ErrPermission)
	}
	return nil
}

// mount builds the process's own view of the file system.
func (c initConfig) mount() error {
	// The sources are opened while they can be seen: /run is about to be hidden.
	sources, err := openSources(c.Mounts)
	if err != nil {
		return err
	}
	if c.OwnProc {
		// A host that hides parts of /proc refuses a new one; the lab's then
		// stays visible, which only shows too much.
		if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("mount /proc: %w", err)
		}
	}
	v := newView()
	if err := v.freshRun(); err != nil {
		return err
	}
	for i, m := range c.Mounts {
		if err := v.attach(m, sources[i]); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.Source, m.Target, err)
		}
	}
	for _, f := range c.Files {
		if err := v.write(f); err != nil {
			return fmt.Errorf("file %s: %w", f.Path, err)
		}
	}
	if len(c.ResolvConf) == 0 {
		return nil
	}
	if err := v.replace("/etc/resolv.conf", c.ResolvConf); err != nil {
		return fmt.Errorf("/etc/resolv.conf: %w", err)
	}
	return nil
}

// openSources makes a detached copy of each mount's source; -1 for a tmpfs.
func openSources(mounts []Mount) ([]int, error) {
	fds := make([]int, len(mounts))
	for i, m := range mounts {
		fds[i] = -1
		if m.Source == "" {
			continue
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, m.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return nil, fmt.Errorf("mount source %s: %w", m.Source, err)
		}
		if m.ReadOnly {
			attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
			if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
				return nil, fmt.Errorf("make %s read-only: %w", m.Source, err)
			}
		}
		fds[i] = fd
	}
	return fds, nil
}
