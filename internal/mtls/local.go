package mtls

import (
	"errors"
	"fmt"

	"github.com/marrowmesh/marrow/internal/identity"
)

// LocalError says which side of a connection within this process would have
// ended the handshake, had there been one.
type LocalError struct {
	// ByServer: the server refused the client; else the other way round.
	ByServer bool
	Err      error
}

func (e *LocalError) Error() string {
	if e.ByServer {
		return "the destination refuses the client: " + e.Err.Error()
	}
	return e.Err.Error()
}

func (e *LocalError) Unwrap() error { return e.Err }

// Verify decides what a handshake between two certificates of this process
// would have decided, now, by the same functions: the client accepts only the
// expected identities, the server only its own trust domain, each by its own
// roots. It returns the client's identity. The error is a *LocalError.
func Verify(client, server *Certificate, expect []identity.ID) (identity.ID, error) {
	if client == nil || server == nil {
		return identity.ID{}, &LocalError{Err: fmt.Errorf("certificate of client present %v, of server %v: both are needed", client != nil, server != nil)}
	}
	if len(expect) == 0 {
		return identity.ID{}, &LocalError{Err: &PeerError{Reason: "no identity is expected of this peer, so none can be accepted"}}
	}
	if err := verifyServer(client, server.Chain, expect); err != nil {
		return identity.ID{}, &LocalError{Err: err}
	}
	if err := verifyClient(server, client.Chain); err != nil {
		return identity.ID{}, &LocalError{ByServer: true, Err: err}
	}
	id, err := identity.FromCertificate(client.Chain[0])
	if err != nil && !errors.Is(err, identity.ErrNoIdentity) {
		return identity.ID{}, &LocalError{ByServer: true, Err: err}
	}
	return id, nil
}
