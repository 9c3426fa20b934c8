package zds

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	zdspb "github.com/marrowmesh/marrow/api/zds"
)

const (
	// packetLimit is the buffer of both sides of the protocol; a longer message
	// cannot be received.
	packetLimit = 1024
	// fdRoom is how many descriptors one packet may bring before the kernel
	// drops the rest; more than one is an error anyway.
	fdRoom = 8
	// ackLimit is how long the agent waits for hello and each ack.
	ackLimit = 5 * time.Second
)

// ErrPacket is a packet that could not be read as a message.
var ErrPacket = errors.New("failure to read message")

// ErrProtocol is a message that is well formed but not allowed at this point. The
// proxy cannot know any more what the agent believes, and gives up.
var ErrProtocol = errors.New("protocol error")

// Info names a pod.
type Info struct{ Name, Namespace, ServiceAccount string }

func (i Info) String() string {
	return i.Namespace + "/" + i.Name + " (service account " + i.ServiceAccount + ")"
}

// readPacket receives one packet. The caller owns the descriptors; on error there
// are none left open.
func readPacket(c *net.UnixConn, buf []byte) ([]byte, []int, error) {
	oob := make([]byte, syscall.CmsgSpace(4*fdRoom))
	// The runtime receives with MSG_CMSG_CLOEXEC.
	n, oobn, flags, _, err := c.ReadMsgUnix(buf, oob)
	fds, perr := parseRights(oob[:oobn])
	switch {
	case err != nil: // also a packet of no bytes, which reads as EOF
	case perr != nil:
		err = perr
	case flags&(syscall.MSG_TRUNC|syscall.MSG_CTRUNC) != 0:
		err = fmt.Errorf("%w: packet truncated (limit is %d bytes and one descriptor)", ErrPacket, packetLimit)
	}
	if err != nil {
		closeAll(fds)
		return nil, nil, err
	}
	return buf[:n], fds, nil
}

func parseRights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("%w: control message: %w", ErrPacket, err)
	}
	var fds []int
	for i := range msgs {
		if got, err := syscall.ParseUnixRights(&msgs[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = syscall.Close(fd)
	}
}

// writePacket sends one packet, with a descriptor unless fd is negative.
func writePacket(c *net.UnixConn, b []byte, fd int) error {
	if len(b) > packetLimit {
		return fmt.Errorf("message of %d bytes: the protocol's limit is %d", len(b), packetLimit)
	}
	var oob []byte
	if fd >= 0 {
		oob = syscall.UnixRights(fd)
	}
	_, _, err := c.WriteMsgUnix(b, oob, nil)
	return err
}

// dupFD duplicates a descriptor with close-on-exec.
func dupFD(fd int) (int, error) {
	n, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_DUPFD_CLOEXEC, 0)
	if errno != 0 {
		return -1, fmt.Errorf("duplicate descriptor %d: %w", fd, os.NewSyscallError("fcntl", errno))
	}
	return int(n), nil
}

type kind int

const (
	kindAdd kind = iota
	kindKeep
	kindDel
	kindSnapshot
)

// request is a decoded WorkloadRequest. fd is owned by whoever holds it, -1 none.
type request struct {
	kind kind
	uid  string
	info Info
	fd   int
}

// decodeRequest reads a message of the agent. It owns fds: they are in the result
// or closed.
func decodeRequest(b []byte, fds []int) (req request, err error) {
	req.fd = -1
	defer func() {
		if err != nil {
			closeAll(fds)
			req = request{fd: -1}
		}
	}()
	var m zdspb.WorkloadRequest
	if err := proto.Unmarshal(b, &m); err != nil {
		return req, fmt.Errorf("%w: %w", ErrPacket, err)
	}
	switch p := m.GetPayload().(type) {
	case *zdspb.WorkloadRequest_Add:
		if len(fds) != 1 {
			return req, fmt.Errorf("%w: add of %q with %d descriptors, must be exactly one", ErrPacket, p.Add.GetUid(), len(fds))
		}
		info := p.Add.GetWorkloadInfo()
		if info == nil {
			return req, fmt.Errorf("%w: add of %q without workload_info", ErrProtocol, p.Add.GetUid())
		}
		req = request{kindAdd, p.Add.GetUid(), Info{info.GetName(), info.GetNamespace(), info.GetServiceAccount()}, fds[0]}
	case *zdspb.WorkloadRequest_Keep:
		req.kind, req.uid = kindKeep, p.Keep.GetUid()
	case *zdspb.WorkloadRequest_Del:
		req.kind, req.uid = kindDel, p.Del.GetUid()
	case *zdspb.WorkloadRequest_SnapshotSent:
		req.kind = kindSnapshot
		return req, noDescriptors(fds)
	default:
		return req, fmt.Errorf("%w: no payload", ErrPacket)
	}
	if req.uid == "" {
		return req, fmt.Errorf("%w: message without uid", ErrPacket)
	}
	if req.kind != kindAdd {
		return req, noDescriptors(fds)
	}
	return req, nil
}

func noDescriptors(fds []int) error {
	if len(fds) != 0 {
		return fmt.Errorf("%w: %d descriptors with a message that carries none", ErrPacket, len(fds))
	}
	return nil
}

func encodeAdd(uid string, i Info) ([]byte, error) {
	return marshalRequest(&zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Add{Add: &zdspb.AddWorkload{
		Uid:          uid,
		WorkloadInfo: &zdspb.WorkloadInfo{Name: i.Name, Namespace: i.Namespace, ServiceAccount: i.ServiceAccount},
	}}})
}

func encodeKeep(uid string) ([]byte, error) {
	return marshalRequest(&zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Keep{Keep: &zdspb.KeepWorkload{Uid: uid}}})
}

func encodeDel(uid string) ([]byte, error) {
	return marshalRequest(&zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Del{Del: &zdspb.DelWorkload{Uid: uid}}})
}

func encodeSnapshotSent() ([]byte, error) {
	return marshalRequest(&zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_SnapshotSent{SnapshotSent: &zdspb.SnapshotSent{}}})
}

func marshalRequest(m *zdspb.WorkloadRequest) ([]byte, error) {
	b, err := proto.Marshal(m)
	if err == nil && len(b) > packetLimit {
		err = fmt.Errorf("message of %d bytes: the protocol's limit is %d", len(b), packetLimit)
	}
	return b, err
}

// encodeAck always carries the Ack sub-message, also when it is empty.
func encodeAck(refusal error) ([]byte, error) {
	ack := &zdspb.Ack{}
	if refusal != nil {
		ack.Error = clip(refusal.Error())
	}
	return proto.Marshal(&zdspb.WorkloadResponse{Payload: &zdspb.WorkloadResponse_Ack{Ack: ack}})
}

// clip keeps an error text within the packet and valid UTF-8.
func clip(s string) string {
	const room = packetLimit - 64
	out := make([]rune, 0, room)
	size := 0
	for _, r := range s { // an invalid byte reads as U+FFFD
		if size += len(string(r)); size > room {
			break
		}
		out = append(out, r)
	}
	return string(out)
}

// Refused is the proxy's answer to a message it did not accept.
type Refused struct{ Text string }

func (r *Refused) Error() string { return "ztunnel refused: " + r.Text }

// decodeAck reads the proxy's answer: nil, a *Refused, or ErrPacket.
func decodeAck(b []byte) error {
	var m zdspb.WorkloadResponse
	if err := proto.Unmarshal(b, &m); err != nil {
		return fmt.Errorf("%w: %w", ErrPacket, err)
	}
	ack, ok := m.GetPayload().(*zdspb.WorkloadResponse_Ack)
	switch {
	case !ok:
		return fmt.Errorf("%w: answer without ack", ErrPacket)
	case ack.Ack.GetError() != "":
		return &Refused{ack.Ack.GetError()}
	}
	return nil
}

func encodeHello() ([]byte, error) { return proto.Marshal(&zdspb.ZdsHello{Version: zdspb.Version_V1}) }

// decodeHello accepts any version: the field has never been checked by agents.
func decodeHello(b []byte) error {
	if err := proto.Unmarshal(b, &zdspb.ZdsHello{}); err != nil {
		return fmt.Errorf("%w: hello: %w", ErrPacket, err)
	}
	return nil
}
