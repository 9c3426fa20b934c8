package lab

import (
	"fmt"
	"strings"
	"time"

	"github.com/marrowmesh/marrow/internal/manifest"
)

// Info describes a lab: what `lab list` shows and what the lab writes into
// info.json of its state directory.
type Info struct {
	Name    string    `json:"name"`
	PID     int       `json:"pid"` // of the lab's process, as the host sees it; 0 when unknown
	Nodes   []string  `json:"nodes"`
	Mesh    bool      `json:"mesh"` // components are run
	IPv6    bool      `json:"ipv6"`
	Started time.Time `json:"started"`
	State   string    `json:"state"` // the state directory
	Running bool      `json:"running"`
}

// Ref names one object of the store.
type Ref struct {
	Group     string `json:"group,omitempty"`
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
}

// Key is the ref as the store's key.
func (r Ref) Key() manifest.Key {
	return manifest.Key{Group: r.Group, Kind: r.Kind, Namespace: r.Namespace, Name: r.Name}
}

// RefOf is the ref of a store key.
func RefOf(k manifest.Key) Ref {
	return Ref{Group: k.Group, Kind: k.Kind, Namespace: k.Namespace, Name: k.Name}
}

// String is kubectl's short way to name the object.
func (r Ref) String() string {
	s := lower(r.Kind)
	if r.Group != "" {
		s += "." + r.Group
	}
	if r.Namespace != "" {
		return s + "/" + r.Namespace + "/" + r.Name
	}
	return s + "/" + r.Name
}

// Change is what became of one object of an apply or delete.
type Change struct {
	Ref    Ref    `json:"ref"`
	Action string `json:"action"` // created, configured, unchanged, deleted, "not found"
}

// DeleteRequest asks to delete objects.
type DeleteRequest struct {
	Refs []Ref `json:"refs"`
	// Wait makes the answer come only when the objects' pods have ended.
	Wait bool `json:"wait,omitempty"`
}

// LabelRequest sets and removes labels (or annotations) of one object.
type LabelRequest struct {
	Ref         Ref               `json:"ref"`
	Set         map[string]string `json:"set,omitempty"`
	Remove      []string          `json:"remove,omitempty"`
	Annotations bool              `json:"annotations,omitempty"`
	// Template changes the labels of a Deployment's pod template.
	Template bool `json:"template,omitempty"`
}

// Target names a pod, a component or a node: "web-7d9f-abcde", "shop/web-…",
// a Deployment's name for one of its pods, "node-1", "fabric".
type Target struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	Container string `json:"container,omitempty"`
}

// String is the target as a user would type it.
func (t Target) String() string {
	if t.Namespace != "" {
		return t.Namespace + "/" + t.Name
	}
	return t.Name
}

// ExecRequest starts a command in a pod; standard streams follow by SCM_RIGHTS.
type ExecRequest struct {
	Target  Target   `json:"target"`
	Command []string `json:"command"`
	Env     []string `json:"env,omitempty"` // added to the container's
}

// ExecSignal is sent by the client on the exec connection, one JSON per line.
type ExecSignal struct {
	Signal int `json:"signal"`
}

// ExecResult ends an exec connection.
type ExecResult struct {
	Exit  int    `json:"exit"` // the command's status; 128+n when a signal ended it
	Error string `json:"error,omitempty"`
}

// KillRequest sends a signal to the processes of a pod's container.
type KillRequest struct {
	Target Target `json:"target"`
	Signal int    `json:"signal"`
}

// KillResult names what was signalled.
type KillResult struct {
	Pod        string   `json:"pod"`
	Containers []string `json:"containers"`
	PIDs       []int    `json:"pids"` // in the lab's pid namespace
}

// WaitResult is the state of a lab's pods at the end of a wait.
type WaitResult struct {
	Ready   bool     `json:"ready"`
	Pods    int      `json:"pods"`
	Pending []string `json:"pending,omitempty"` // "ns/name: why"
}

// Progress is one line of the lab's story: what it did last.
type Progress struct {
	Time time.Time `json:"time"`
	Text string    `json:"text"`
	// Final marks the line that tells the outcome of the start.
	Final bool   `json:"final,omitempty"`
	Error string `json:"error,omitempty"`
}

// APIError is a refusal of the control API.
type APIError struct {
	Status  int    `json:"status"`
	Message string `json:"message"`
}

// Error is the lab's own text; it names the object and what to do.
func (e *APIError) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("the lab answered with status %d", e.Status)
	}
	return e.Message
}

// ParseTarget reads a target as users write it: "name" or "namespace/name".
func ParseTarget(s string) Target {
	if ns, name, ok := strings.Cut(s, "/"); ok {
		return Target{Namespace: ns, Name: name}
	}
	return Target{Name: s}
}

// CaptureRequest starts a capture into a file of the lab's directory.
type CaptureRequest struct {
	Target Target `json:"target"`
	// Interface is empty for the uplink of a pod or node, "any" for all.
	Interface string `json:"interface,omitempty"`
}

// Recording is a capture into a file. Packets and Dropped count when it has
// ended; a search of a recording that dropped packets proves nothing.
type Recording struct {
	ID      string `json:"id"`
	Path    string `json:"path"` // pcap
	Packets int    `json:"packets"`
	Dropped int    `json:"dropped"`
}
