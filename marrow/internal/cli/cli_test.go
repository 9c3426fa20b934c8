package cli_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/marrowmesh/marrow/internal/lab/cluster"
	"github.com/marrowmesh/marrow/internal/lab/proc"
	"github.com/marrowmesh/marrow/internal/lab/sandbox"
	"github.com/marrowmesh/marrow/marrow/internal/cli"
)

func TestMain(m *testing.M) {
	proc.MaybeInit()
	sandbox.MaybeInit()
	if box, ok := sandbox.Inside(); ok {
		os.Exit(cluster.Main(box, os.Args[1:]))
	}
	testscript.Main(m, map[string]func(){"marrow": func() { os.Exit(cli.Main(os.Args[1:])) }})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			// Not below the script's directory: a unix socket's path has room
			// for 108 bytes.
			dir, err := os.MkdirTemp("", "cli") //nolint:usetesting // see above
			if err != nil {
				return err
			}
			env.Defer(func() { _ = os.RemoveAll(dir) })
			env.Setenv("MARROW_LAB_DIR", filepath.Join(dir, "labs"))
			return nil
		},
		Condition: func(cond string) (bool, error) { return cond == "lab" && mayMakeLabs(), nil },
	})
}

// mayMakeLabs tries what a lab needs.
func mayMakeLabs() bool {
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID}
	return cmd.Run() == nil
}
