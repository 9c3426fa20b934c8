package cluster

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/internal/lab/fabric"
	"github.com/marrowmesh/marrow/internal/lab/proc"
)

// postExec runs a command for a client that passes its own streams.
func (c *cluster) postExec(w http.ResponseWriter, r *http.Request) error {
	var req lab.ExecRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	if r.Header.Get("Upgrade") != lab.ExecProtocol {
		return &status{code: http.StatusUpgradeRequired, err: fmt.Errorf("exec needs Upgrade: %s", lab.ExecProtocol)}
	}
	if len(req.Command) == 0 {
		return bad(errors.New("no command to run; give one after --"))
	}
	start, err := c.starter(req)
	if err != nil {
		return err
	}
	raw, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return err
	}
	defer func() { _ = raw.Close() }()
	conn, ok := raw.(*net.UnixConn)
	if !ok {
		return nil // never: the listener is a unix socket
	}
	_ = conn.SetDeadline(time.Time{})
	// From here on errors are results on the connection.
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+lab.ExecProtocol+"\r\n\r\n"); err != nil {
		return nil // the client has left
	}
	res := execute(conn, start)
	_ = json.NewEncoder(conn).Encode(res)
	return nil
}

type startFunc func(in, out, errs *os.File) (*proc.Process, error)

// starter finds where the command runs: in a pod, or in the namespace of a
// node or of the fabric.
func (c *cluster) starter(req lab.ExecRequest) (startFunc, error) {
	if ns, ok := c.namespaceOf(req.Target); ok {
		return func(in, out, errs *os.File) (*proc.Process, error) {
			return c.kubelet.ExecIn(ns, req.Command, req.Env, in, out, errs)
		}, nil
	}
	p, err := c.pod(req.Target)
	if err != nil {
		return nil, err
	}
	return func(in, out, errs *os.File) (*proc.Process, error) {
		return c.kubelet.Exec(p, req.Target.Container, req.Command, req.Env, in, out, errs)
	}, nil
}

// namespaceOf answers for targets that are no pods.
func (c *cluster) namespaceOf(t lab.Target) (*fabric.Netns, bool) {
	if t.Namespace != "" {
		return nil, false
	}
	if t.Name == "fabric" {
		return c.fabric.Netns(), true
	}
	if n, ok := c.fabric.Node(t.Name); ok {
		return n.Netns(), true
	}
	return nil, false
}

// execute receives the streams, runs the command to its end and forwards
// signals. A client that goes away takes the command with it.
func execute(conn *net.UnixConn, start startFunc) lab.ExecResult {
	streams, err := receive(conn)
	if err != nil {
		return lab.ExecResult{Error: err.Error()}
	}
	p, err := start(streams[0], streams[1], streams[2])
	// The command has its own copies now; holding ours would keep pipes open.
	for _, f := range streams {
		_ = f.Close()
	}
	if err != nil {
		return lab.ExecResult{Error: err.Error()}
	}
	left := make(chan struct{})
	go func() {
		defer close(left)
		dec := json.NewDecoder(bufio.NewReader(conn))
		for {
			var s lab.ExecSignal
			if dec.Decode(&s) != nil {
				return
			}
			_ = p.Signal(syscall.Signal(s.Signal)) // an ended command needs none
		}
	}()
	select {
	case <-p.Done():
	case <-left:
		_ = p.Signal(syscall.SIGKILL)
		<-p.Done()
	}
	_ = conn.SetReadDeadline(time.Now()) // ends the reader
	<-left
	st, _ := p.Status()
	return lab.ExecResult{Exit: st.Code}
}

// receive takes the three standard streams off the connection.
func receive(conn *net.UnixConn) ([]*os.File, error) {
	one := make([]byte, 1)
	oob := make([]byte, syscall.CmsgSpace(3*4))
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, n, _, _, err := conn.ReadMsgUnix(one, oob)
	if err != nil {
		return nil, fmt.Errorf("receive standard streams: %w", err)
	}
	_ = conn.SetReadDeadline(time.Time{})
	messages, err := syscall.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return nil, fmt.Errorf("receive standard streams: %w", err)
	}
	var out []*os.File
	for _, m := range messages {
		fds, err := syscall.ParseUnixRights(&m)
		if err != nil {
			continue // another kind of message
		}
		for _, fd := range fds {
			out = append(out, file(fd, "stream"))
		}
	}
	if len(out) != 3 {
		for _, f := range out {
			_ = f.Close()
		}
		return nil, fmt.Errorf("%d standard streams came, want 3", len(out))
	}
	return out, nil
}
