package h2

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/net/http2"
)

// Code is an HTTP/2 error code.
type Code uint32

// The codes of RFC 9113 section 7 that this package sends or tells apart.
const (
	NoError         = Code(http2.ErrCodeNo)
	ProtocolError   = Code(http2.ErrCodeProtocol)
	InternalError   = Code(http2.ErrCodeInternal)
	FlowControl     = Code(http2.ErrCodeFlowControl)
	StreamClosed    = Code(http2.ErrCodeStreamClosed)
	FrameSizeError  = Code(http2.ErrCodeFrameSize)
	RefusedStream   = Code(http2.ErrCodeRefusedStream)
	Cancel          = Code(http2.ErrCodeCancel)
	Compression     = Code(http2.ErrCodeCompression)
	EnhanceYourCalm = Code(http2.ErrCodeEnhanceYourCalm)
)

func (c Code) String() string { return http2.ErrCode(c).String() }

var (
	// ErrClosed is the end of a connection that we closed.
	ErrClosed = errors.New("http2 connection closed")
	// ErrDrained is the end of a connection whose streams all finished after
	// one side said that it goes away.
	ErrDrained = errors.New("http2 connection drained")
	// ErrGoingAway refuses a new stream, or one that the peer did not begin
	// to process: it may be tried again on another connection.
	ErrGoingAway = errors.New("http2 peer is going away")
	// ErrPingTimeout is the end of a connection whose peer fell silent.
	ErrPingTimeout = errors.New("http2 ping timeout")
)

// ResetError is a stream that was reset.
type ResetError struct {
	Code   Code
	Remote bool // by the peer
	Reason string
}

func (e *ResetError) Error() string {
	who := "locally"
	if e.Remote {
		who = "by the peer"
	}
	if e.Reason != "" {
		return fmt.Sprintf("http2 stream reset %s: %v: %s", who, e.Code, e.Reason)
	}
	return fmt.Sprintf("http2 stream reset %s: %v", who, e.Code)
}

// Is makes a reset that only says "no more of this" a broken pipe.
func (e *ResetError) Is(target error) bool {
	if target != syscall.EPIPE {
		return false
	}
	return e.Code == NoError || e.Code == Cancel || e.Code == StreamClosed
}

// ConnError is why a connection ended.
type ConnError struct {
	Code   Code
	Remote bool // said by the peer in GOAWAY
	Reason string
	Err    error
}

func (e *ConnError) Error() string {
	who := "http2 connection ended"
	if e.Remote {
		who = "http2 peer ended the connection"
	}
	s := fmt.Sprintf("%s: %v", who, e.Code)
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *ConnError) Unwrap() error { return e.Err }

// Violation reports that the connection ended because its peer broke the
// protocol, or did too much of what costs it nothing.
func (e *ConnError) Violation() bool {
	if e.Remote {
		return false
	}
	switch e.Code {
	case ProtocolError, FlowControl, StreamClosed, FrameSizeError, Compression, EnhanceYourCalm:
		return true
	case NoError, InternalError, RefusedStream, Cancel:
	}
	return false
}

func violation(code Code, format string, args ...any) *ConnError {
	return &ConnError{Code: code, Reason: fmt.Sprintf(format, args...)}
}
