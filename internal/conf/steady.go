package conf

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

// steady keeps the runtime's monitor thread out of its deep sleep: the number
// is the longest period, in milliseconds, in which the runtime then writes
// one line about its scheduler (24.8 days).
const steady = "schedtrace=2147483647"

// Steady executes the program again, in the same process, with GODEBUG set
// such that the runtime's monitor thread looks after the others every 10 ms
// instead of sleeping whenever all are idle. A proxy is idle between any two
// messages; waking the monitor at each, and having it look every 20 µs for a
// while, costs more than the messages (docs/adr/0009). It returns nil where
// that is in force already, and an error where the program cannot be executed
// again; the program may go on then. An operator's own schedtrace stands.
func Steady() error {
	env, done := withSteady(os.Environ())
	if done {
		return nil
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("set GODEBUG=%s: %w", steady, err)
	}
	return fmt.Errorf("set GODEBUG=%s: execute %s: %w", steady, exe, syscall.Exec(exe, os.Args, env))
}

// withSteady adds the setting to an environment; done says that there is one.
func withSteady(environ []string) (env []string, done bool) {
	const name = "GODEBUG="
	value := steady
	for _, e := range environ {
		old, ok := strings.CutPrefix(e, name)
		if !ok {
			env = append(env, e)
			continue
		}
		for setting := range strings.SplitSeq(old, ",") {
			if strings.HasPrefix(setting, "schedtrace=") {
				return environ, true
			}
		}
		if old != "" {
			value = old + "," + steady
		}
	}
	return append(env, name+value), false
}
