package arena

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Watcher is a service of every agent: it looks at the proxy in whose pod it is.
type Watcher struct {
	mu   sync.Mutex
	stop chan struct{}
	peak chan int64
}

// State is what the proxy holds at a moment.
type State struct {
	RSS        int64 // bytes
	CPU        time.Duration
	FDs        int
	Goroutines int
}

// proxyDir finds the proxy of this pod: of the lab's processes, all of which are seen here, it shares our network.
func proxyDir() (string, error) {
	ours, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return "", err
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return "", err
	}
	for _, dir := range dirs {
		exe, err := os.Readlink(dir + "/exe")
		if err != nil || filepath.Base(exe) != "ztunnel" {
			continue // ended meanwhile, or another program
		}
		if net, err := os.Readlink(dir + "/ns/net"); err == nil && net == ours {
			return dir, nil
		}
	}
	return "", errors.New("no ztunnel runs in this pod")
}

func rss(dir string) int64 {
	raw, _ := os.ReadFile(dir + "/status")
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kib << 10
		}
	}
	return 0
}

func cpu(dir string) time.Duration {
	raw, _ := os.ReadFile(dir + "/stat")
	_, rest, _ := strings.Cut(string(raw), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * (time.Second / 100) // USER_HZ is 100 on every Linux
}

// Look takes the state.
func (*Watcher) Look(_ struct{}, out *State) error {
	dir, err := proxyDir()
	if err != nil {
		return err
	}
	fds, err := os.ReadDir(dir + "/fd")
	if err != nil {
		return err
	}
	*out = State{RSS: rss(dir), CPU: cpu(dir), FDs: len(fds)}
	profile, err := goroutines()
	if err != nil {
		return err
	}
	_, err = fmt.Sscanf(profile, "goroutine profile: total %d", &out.Goroutines)
	return err
}

// Goroutines is the profile in words, for a test that failed.
func (*Watcher) Goroutines(_ struct{}, out *string) (err error) {
	*out, err = goroutines()
	return err
}

// goroutines asks the proxy's admin page, on a connection that is gone afterwards.
func goroutines() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:15000/debug/pprof/goroutine?debug=1", nil)
	if err != nil {
		return "", err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	return string(raw), err
}

// Begin watches the memory until Peak is called.
func (w *Watcher) Begin(struct{}, *struct{}) error {
	dir, err := proxyDir()
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	stop, peak := make(chan struct{}), make(chan int64, 1)
	w.stop, w.peak = stop, peak
	go func() {
		most := rss(dir)
		for {
			select {
			case <-stop:
				peak <- max(most, rss(dir))
				return
			case <-time.After(20 * time.Millisecond):
				most = max(most, rss(dir))
			}
		}
	}()
	return nil
}

// Peak is the most memory since Begin.
func (w *Watcher) Peak(_ struct{}, out *int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.stop)
	*out = <-w.peak
	return nil
}
