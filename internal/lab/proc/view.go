package proc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	runDir = "/run"
	// hiddenDir, inside the fresh /run, keeps what veils hide.
	hiddenDir = "/run/.lab"
	maxLinks  = 40
)

// view knows which directories of this process's file system are its own, so
// that nothing is ever created in the host's.
type view struct {
	own    []string // mount points of new tmpfs
	others []string // mount points of the host's files
	veils  int
}

func newView() *view { return &view{} }

// writable reports whether path lies in a tmpfs of this process.
func (v *view) writable(path string) bool {
	return longest(v.own, path) > longest(v.others, path)
}

func longest(roots []string, path string) int {
	n := 0
	for _, r := range roots {
		if path == r || strings.HasPrefix(path, r+"/") {
			n = max(n, len(r))
		}
	}
	return n
}

func (v *view) tmpfs(at string) error {
	if err := unix.Mount("tmpfs", at, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return err
	}
	v.own = append(v.own, at)
	return nil
}

// freshRun hides /run, and /var/run where that is not the same.
func (v *view) freshRun() error {
	if err := v.tmpfs(runDir); err != nil {
		return fmt.Errorf("mount a fresh /run: %w", err)
	}
	if err := os.Mkdir(hiddenDir, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", hiddenDir, err)
	}
	real, err := v.resolve("/var/run")
	if err != nil {
		return fmt.Errorf("resolve /var/run: %w", err)
	}
	if real == runDir {
		return nil
	}
	if err := v.prepare(real, true); err != nil {
		return fmt.Errorf("make room for /var/run at %s: %w", real, err)
	}
	if err := unix.Mount(runDir, real, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", runDir, real, err)
	}
	v.own = append(v.own, real)
	return nil
}

// resolve follows the symbolic links of an absolute path. Parts that do not
// exist stay as they are.
func (v *view) resolve(path string) (string, error) {
	rest := splitPath(path)
	at := "/"
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		next := filepath.Join(at, part) // ".." needs no special care: at has no links left
		target, err := os.Readlink(next)
		if err != nil {
			// Not a link, or nothing there yet.
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("%s: too many symbolic links", path)
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = slices.Concat(splitPath(target), rest)
	}
	return at, nil
}

func splitPath(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

// prepare makes sure that something is at the (resolved) path to mount upon:
// a directory or an empty file.
func (v *view) prepare(path string, dir bool) error {
	if info, err := os.Stat(path); err == nil {
		if info.IsDir() != dir {
			return fmt.Errorf("%s exists and is not of the kind that is mounted there", path)
		}
		return nil
	}
	if err := v.makeDir(filepath.Dir(path)); err != nil {
		return err
	}
	if err := v.veil(filepath.Dir(path)); err != nil {
		return err
	}
	if dir {
		return os.Mkdir(path, 0o755)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// makeDir makes a directory and its parents, in this process's own view only.
func (v *view) makeDir(path string) error {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return nil
	case err == nil:
		return fmt.Errorf("%s: %w", path, unix.ENOTDIR)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	parent := filepath.Dir(path)
	if err := v.makeDir(parent); err != nil {
		return err
	}
	if err := v.veil(parent); err != nil {
		return err
	}
	return os.Mkdir(path, 0o755)
}

// veil puts a tmpfs over a directory of the host and shows the old entries in
// it by symbolic links, so that new ones can be made beside them.
func (v *view) veil(dir string) error {
	if v.writable(dir) {
		return nil
	}
	if dir == "/" {
		return errors.New("the root directory cannot get new entries; choose a path below an existing directory")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	v.veils++
	old := filepath.Join(hiddenDir, strconv.Itoa(v.veils))
	if err := os.Mkdir(old, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(dir, old, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("keep %s: %w", dir, err)
	}
	v.others = append(v.others, old)
	if err := v.tmpfs(dir); err != nil {
		return fmt.Errorf("veil %s: %w", dir, err)
	}
	for _, e := range entries {
		if err := os.Symlink(filepath.Join(old, e.Name()), filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// attach puts one Mount in place.
func (v *view) attach(m Mount, fd int) error {
	target, err := v.resolve(m.Target)
	if err != nil {
		return err
	}
	if fd < 0 {
		if err := v.prepare(target, true); err != nil {
			return err
		}
		return v.tmpfs(target)
	}
	defer func() { _ = unix.Close(fd) }()
	var info unix.Stat_t
	if err := unix.Fstat(fd, &info); err != nil {
		return err
	}
	if err := v.prepare(target, info.Mode&unix.S_IFMT == unix.S_IFDIR); err != nil {
		return err
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return err
	}
	v.others = append(v.others, target)
	return nil
}

// write makes a file in this process's own view.
func (v *view) write(f File) error {
	path, err := v.resolve(f.Path)
	if err != nil {
		return err
	}
	if !v.writable(filepath.Dir(path)) {
		return errors.New("is outside /run and every tmpfs of the pod; mount a tmpfs (no source) above it")
	}
	if err := v.makeDir(filepath.Dir(path)); err != nil {
		return err
	}
	mode := f.Mode
	if mode == 0 {
		mode = 0o644
	}
	if err := os.WriteFile(path, f.Data, mode); err != nil {
		return err
	}
	return os.Chmod(path, mode) // whatever the umask was
}

// replace shows other content at the path of a file, which may be missing.
func (v *view) replace(path string, content []byte) error {
	target, err := v.resolve(path)
	if err != nil {
		return err
	}
	if v.writable(filepath.Dir(target)) {
		return v.write(File{Path: target, Data: content})
	}
	if _, err := os.Stat(target); err != nil {
		if err := v.prepare(target, false); err != nil {
			return err
		}
		return v.write(File{Path: target, Data: content})
	}
	v.veils++
	own := filepath.Join(hiddenDir, "file-"+strconv.Itoa(v.veils))
	if err := v.write(File{Path: own, Data: content}); err != nil {
		return err
	}
	if err := unix.Mount(own, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind to %s: %w", target, err)
	}
	return nil
}
