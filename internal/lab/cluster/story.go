package cluster

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/internal/lab/kubelet"
)

// story is what the lab tells: into its log, and to those who follow its
// start.
type story struct {
	w io.Writer

	mu    sync.Mutex
	lines []lab.Progress // until the start is over
	over  bool
	more  chan struct{} // closed at the next line
}

func newStory(w io.Writer) *story { return &story{w: w, more: make(chan struct{})} }

// tell adds a line.
func (s *story) tell(format string, args ...any) {
	s.add(lab.Progress{Time: time.Now(), Text: fmt.Sprintf(format, args...)})
}

// finish tells the outcome of the start.
func (s *story) finish(err error) {
	p := lab.Progress{Time: time.Now(), Text: "the lab is ready", Final: true}
	if err != nil {
		p.Text, p.Error = "the lab could not be started", err.Error()
	}
	s.add(p)
}

func (s *story) add(p lab.Progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _ = fmt.Fprintf(s.w, "%s %s%s\n", p.Time.UTC().Format("2006-01-02T15:04:05.000Z"), p.Text, suffix(p.Error))
	if s.over {
		return // the log has it; nobody follows any more
	}
	s.lines = append(s.lines, p)
	s.over = p.Final
	close(s.more)
	s.more = make(chan struct{})
}

func suffix(err string) string {
	if err == "" {
		return ""
	}
	return ": " + err
}

// after answers with the lines from number n on, and a channel that is closed
// when there are more.
func (s *story) after(n int) ([]lab.Progress, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]lab.Progress(nil), s.lines[min(n, len(s.lines)):]...), s.more
}

// lastLines are the end of a container's log, for messages.
func (c *cluster) lastLines(p *corev1.Pod, container string) string {
	const keep = 600
	raw, err := os.ReadFile(kubelet.LogPath(c.state, p.Namespace, p.Name, container))
	if err != nil || len(raw) == 0 {
		return ""
	}
	text := string(raw[max(0, len(raw)-keep):])
	if _, rest, ok := strings.Cut(text, "\n"); ok && len(raw) > keep {
		text = rest
	}
	return "last log lines: " + strings.TrimSpace(text)
}
