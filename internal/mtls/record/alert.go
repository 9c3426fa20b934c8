package record

import (
	"crypto/tls"
	"fmt"
)

// The alerts of RFC 8446 6 that this package sends or tells apart.
//
//nolint:errname // named as there
const (
	closeNotify       = tls.AlertError(0)
	unexpectedMessage = tls.AlertError(10)
	badRecordMAC      = tls.AlertError(20)
	recordOverflow    = tls.AlertError(22)
	illegalParameter  = tls.AlertError(47)
	decodeError       = tls.AlertError(50)
	internalError     = tls.AlertError(80)
	userCanceled      = tls.AlertError(90)
)

const (
	levelWarning = 1
	levelFatal   = 2
)

// AlertError is the end of a connection by an alert: one that the peer sent,
// or one that we sent because of what the peer did.
type AlertError struct {
	Alert  tls.AlertError
	Remote bool   // the peer sent it
	Reason string // what was wrong, if we sent it
}

func (e *AlertError) Error() string {
	if e.Remote {
		return fmt.Sprintf("the peer ended the TLS connection with alert %d (%v)", uint8(e.Alert), e.Alert)
	}
	return fmt.Sprintf("TLS connection ended with alert %d (%v): %s", uint8(e.Alert), e.Alert, e.Reason)
}

// Unwrap gives the alert to errors.As.
func (e *AlertError) Unwrap() error { return e.Alert }
