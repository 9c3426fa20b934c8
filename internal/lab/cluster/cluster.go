package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/marrowmesh/marrow/internal/conf"
	"github.com/marrowmesh/marrow/internal/filestore"
	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/internal/lab/components"
	"github.com/marrowmesh/marrow/internal/lab/fabric"
	"github.com/marrowmesh/marrow/internal/lab/kubelet"
	"github.com/marrowmesh/marrow/internal/lab/labdns"
	"github.com/marrowmesh/marrow/internal/lab/plan"
	"github.com/marrowmesh/marrow/internal/lab/sandbox"
	"github.com/marrowmesh/marrow/internal/lab/tokens"
	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/internal/run"
)

// How long a pod may take to end when the whole lab does.
const (
	stopGrace     = 5 * time.Second
	stopMeshGrace = time.Second
)

// Main is the program inside the sandbox: args are lab.InsideVerb and a
// lab.Spec. It returns the exit code.
func Main(box *sandbox.Box, args []string) int {
	return run.Main("marrow lab", func(ctx context.Context) error {
		err := mainErr(ctx, box, args)
		if err != nil {
			box.Fail(err)
		}
		return err
	})
}

func mainErr(ctx context.Context, box *sandbox.Box, args []string) error {
	if len(args) != 2 || args[0] != lab.InsideVerb {
		return fmt.Errorf("the sandbox was started with %q, which is no lab", args)
	}
	var spec lab.Spec
	if err := json.Unmarshal([]byte(args[1]), &spec); err != nil {
		return fmt.Errorf("decode the lab's description: %w", err)
	}
	return Run(ctx, box, spec)
}

// cluster is a running lab.
type cluster struct {
	spec  lab.Spec
	state lab.State
	info  lab.Info
	story *story

	fabric  *fabric.Fabric
	dns     *labdns.Server
	world   *world
	applier *applier
	kubelet *kubelet.Kubelet

	recordings recordings
	// stop ends the lab.
	stop context.CancelFunc
}

// Run is the whole life of a lab. It returns when ctx has ended, or shutdown
// was asked for, and every pod has ended.
func Run(ctx context.Context, box *sandbox.Box, spec lab.Spec) (err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	c := &cluster{spec: spec, state: lab.State{Dir: spec.Dir}, story: newStory(os.Stderr), stop: stop}
	lock, err := c.state.Lock()
	if err != nil {
		return err
	}
	// Closed last of all: it tells the world that nothing runs any more.
	defer func() { _ = lock.Close() }()
	if err := c.describe(box); err != nil {
		return err
	}
	if err := c.buildNetwork(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.fabric.Close()) }()
	return c.serve(ctx, box)
}

func (c *cluster) describe(box *sandbox.Box) error {
	c.info = lab.Info{
		Name: c.spec.Name, PID: box.HostPID, Mesh: !c.spec.NoMesh, Started: time.Now(), State: c.spec.Dir, Running: true,
		IPv6: !c.spec.NoIPv6 && fabric.HostHasIPv6(),
	}
	for i := range c.spec.Nodes {
		c.info.Nodes = append(c.info.Nodes, fmt.Sprintf("node-%d", i+1))
	}
	return c.state.WriteInfo(c.info)
}

func (c *cluster) buildNetwork(ctx context.Context) error {
	c.story.tell("building %d nodes", len(c.info.Nodes))
	f, err := fabric.New(ctx, fabric.Config{Nodes: c.info.Nodes, IPv6: c.info.IPv6})
	if err != nil {
		return err
	}
	c.fabric = f
	c.dns = labdns.NewServer()
	return nil
}

// serve runs everything until ctx ends, then ends it in order.
func (c *cluster) serve(ctx context.Context, box *sandbox.Box) error {
	issuer, err := tokens.NewIssuer()
	if err != nil {
		return err
	}
	if err := c.writeKeys(issuer); err != nil {
		return err
	}
	store, err := filestore.Open(c.state.Objects())
	if err != nil {
		return err
	}
	c.world = newWorld(store)
	c.applier = newApplier(c.world)
	// What serves outlives ctx: pods end through the network, the DNS and the
	// control plane.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	g := run.NewGroup(life)
	c.kubelet = kubelet.New(life, kubelet.Config{
		World: c.world, Fabric: c.fabric, Tokens: issuer, State: c.state, Waypoint: c.waypoint(),
		Path: c.path(), Mesh: !c.spec.NoMesh, Note: c.story.tell,
	})
	if err := c.startServices(life, g, store); err != nil {
		g.Stop()
		return errors.Join(err, g.Wait())
	}
	started := make(chan struct{})
	g.Go("start", func(life context.Context) error {
		defer close(started)
		// A start that fails is told to whoever follows the story; they end
		// the lab.
		c.story.finish(c.bootMesh(ctx))
		return nil
	})
	ready := box.Ready()
	select {
	case <-ctx.Done():
	case <-g.Context().Done():
	}
	c.story.tell("ending")
	<-started
	c.stopRecordings()
	c.kubelet.Stop(stopGrace, stopMeshGrace, func(p *corev1.Pod) bool { return p.Namespace == components.Namespace })
	errK := c.kubelet.Wait()
	g.Stop()
	return errors.Join(ready, errK, g.Wait())
}

// startServices starts DNS, the watch of the store, the controller and the
// control socket.
func (c *cluster) startServices(ctx context.Context, g *run.Group, store *filestore.Store) error {
	addrs := []netip.Addr{fabric.DNS4()}
	if c.info.IPv6 {
		addrs = append(addrs, fabric.DNS6())
	}
	l, err := labdns.Listen(ctx, addrs...)
	if err != nil {
		return err
	}
	g.Go("dns", func(ctx context.Context) error { return c.dns.Serve(ctx, l) })
	events, err := store.Watch(g.Context())
	if err != nil {
		return err
	}
	g.Go("watch", func(context.Context) error {
		for batch := range events {
			if err := c.world.observe(batch); err != nil {
				c.story.tell("%v", err)
			}
		}
		return nil
	})
	ranges := plan.Ranges{V4: fabric.ServiceCIDR4(), Reserved: []netip.Addr{fabric.DNS4(), fabric.DNS6()}}
	if c.info.IPv6 {
		ranges.V6 = fabric.ServiceCIDR6()
	}
	control := &controller{
		world: c.world, net: c.fabric, names: c.dns, sync: c.kubelet.Sync, ranges: ranges, note: c.story.tell,
	}
	g.Go("controller", control.run)
	if err := c.base(); err != nil {
		return err
	}
	return c.listen(g)
}

func baseNamespaces() []string {
	return []string{metav1.NamespaceDefault, metav1.NamespaceSystem, components.Namespace}
}

// base stores the namespaces, nodes and accounts that every cluster has.
func (c *cluster) base() error {
	objects := components.Base()
	for _, name := range baseNamespaces() {
		if name != components.Namespace {
			objects = append(objects, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
		}
	}
	if c.spec.NoMesh {
		// The namespace stays, for nothing but its name.
		objects = slices.DeleteFunc(objects, func(o manifest.Object) bool { return manifest.KeyOf(o).Kind != "Namespace" })
	}
	for i, n := range c.fabric.Nodes() {
		objects = append(objects, c.nodeObject(i, n))
	}
	for _, o := range objects {
		if ns, ok := o.(*corev1.Namespace); ok {
			ns.Labels = map[string]string{corev1.LabelMetadataName: ns.Name}
		}
		if err := c.world.put(o); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) nodeObject(i int, n *fabric.Node) *corev1.Node {
	region, zone := "lab", fmt.Sprintf("zone-%d", i+1)
	if i < len(c.spec.Zones) {
		region, zone = cutZone(c.spec.Zones[i])
	}
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: map[string]string{
			corev1.LabelHostname: n.Name, corev1.LabelTopologyRegion: region, corev1.LabelTopologyZone: zone,
			corev1.LabelOSStable: "linux",
		}},
		Spec: corev1.NodeSpec{PodCIDR: n.Pods4.String(), PodCIDRs: []string{n.Pods4.String()}},
	}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: n.IP4().String()}}
	if c.info.IPv6 {
		node.Spec.PodCIDRs = append(node.Spec.PodCIDRs, n.Pods6.String())
		node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: n.IP6().String()})
	}
	node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: n.Name})
	now := metav1.Now()
	node.Status.Conditions = []corev1.NodeCondition{{
		Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "LabReady", LastTransitionTime: now, LastHeartbeatTime: now,
	}}
	return node
}

func (c *cluster) writeKeys(issuer *tokens.Issuer) error {
	raw, err := issuer.JWKS()
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.state.JWKS(), raw, 0o644); err != nil {
		return fmt.Errorf("write the token key set: %w", err)
	}
	return nil
}

// path is the PATH of every container: our programs before the host's.
func (c *cluster) path() string {
	return c.spec.BinDir + ":" + conf.FromEnv().String("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}
