package ambient

import (
	"errors"
	"fmt"

	apimesh "istio.io/api/mesh/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"github.com/marrowmesh/marrow/internal/manifest"
)

// Config is what the control plane's own flags say.
type Config struct {
	ClusterID       string // default "Kubernetes"
	Domain          string // of Services; default "cluster.local"
	SystemNamespace string // holds the ConfigMap istio and names the network; default "istio-system"
	Revision        string // only Istio objects of this revision, or of none, count; empty: all
	Unguarded       bool   // traffic may pass by a waypoint whose policies it should meet, as with Istio (ADR 16)
}

func (c Config) withDefaults() Config {
	if c.ClusterID == "" {
		c.ClusterID = "Kubernetes"
	}
	if c.Domain == "" {
		c.Domain = "cluster.local"
	}
	if c.SystemNamespace == "" {
		c.SystemNamespace = "istio-system"
	}
	return c
}

// DefaultTrustDomain is left out on the wire.
const DefaultTrustDomain = "cluster.local"

// Settings are the mesh-wide ones that users write into the ConfigMap istio.
type Settings struct {
	RootNamespace string
	TrustDomain   string
	Config        *apimesh.MeshConfig // everything that was written; nil = nothing. Read only
	text          string              // what the settings were parsed from: equal texts are equal settings
	discovery     []labels.Selector
	visibility    []visibilityPolicy
	visibilitySet bool
	otherwise     apimesh.ServiceEntryVisibility_Visibility
}

type visibilityPolicy struct {
	give  apimesh.ServiceEntryVisibility_Visibility
	never bool // a rule that is not understood matches nothing
	match []labels.Selector
}

// ParseSettings reads the key "mesh" of the ConfigMap; an empty text gives the defaults. Fields that are not known are in
// the error, the settings count all the same; any other error leaves them empty.
func ParseSettings(cfg Config, text string) (s Settings, unknown, err error) {
	cfg = cfg.withDefaults()
	s = Settings{RootNamespace: cfg.SystemNamespace, TrustDomain: DefaultTrustDomain, text: text}
	mesh := &apimesh.MeshConfig{}
	raw, err := yaml.YAMLToJSONStrict([]byte(text))
	if err != nil {
		return Settings{}, nil, fmt.Errorf("mesh settings: not valid YAML: %w", err)
	}
	if string(raw) == "null" {
		return s, nil, nil
	}
	unknown = manifest.CheckMessage("mesh", raw, mesh)
	if err := mesh.UnmarshalJSON(raw); err != nil {
		return Settings{}, nil, errors.Join(fmt.Errorf("mesh settings: %w", err), unknown)
	}
	s.Config = mesh
	if mesh.GetRootNamespace() != "" {
		s.RootNamespace = mesh.GetRootNamespace()
	}
	if mesh.GetTrustDomain() != "" {
		s.TrustDomain = mesh.GetTrustDomain()
	}
	for i, sel := range mesh.GetDiscoverySelectors() {
		parsed, err := selectorOf(sel)
		if err != nil {
			return Settings{}, nil, fmt.Errorf("mesh settings: discoverySelectors[%d]: %w", i, err)
		}
		s.discovery = append(s.discovery, parsed)
	}
	if err := s.parseVisibility(mesh.GetServiceEntryVisibility()); err != nil {
		return Settings{}, nil, fmt.Errorf("mesh settings: %w", err)
	}
	return s, unknown, nil
}

func (s *Settings) parseVisibility(v *apimesh.ServiceEntryVisibility) error {
	s.visibilitySet = v != nil
	s.otherwise = v.GetDefaultVisibility()
	for i, p := range v.GetPolicies() {
		policy := visibilityPolicy{give: p.GetVisibility()}
		for j, rule := range p.GetMatchingRules() {
			if rule.GetNamespaceSelector() == nil {
				policy.never = true
				continue
			}
			parsed, err := selectorOf(rule.GetNamespaceSelector())
			if err != nil {
				return fmt.Errorf("serviceEntryVisibility.policies[%d].matchingRules[%d]: %w", i, j, err)
			}
			policy.match = append(policy.match, parsed)
		}
		s.visibility = append(s.visibility, policy)
	}
	return nil
}

func selectorOf(sel *apimesh.LabelSelector) (labels.Selector, error) {
	out := &metav1.LabelSelector{MatchLabels: sel.GetMatchLabels()}
	for _, e := range sel.GetMatchExpressions() {
		out.MatchExpressions = append(out.MatchExpressions, metav1.LabelSelectorRequirement{
			Key: e.GetKey(), Operator: metav1.LabelSelectorOperator(e.GetOperator()), Values: e.GetValues(),
		})
	}
	return metav1.LabelSelectorAsSelector(out)
}

// discovers says whether a namespace with these labels is looked at.
func (s Settings) discovers(nsLabels map[string]string) bool {
	if len(s.discovery) == 0 {
		return true
	}
	for _, sel := range s.discovery {
		if sel.Matches(labels.Set(nsLabels)) {
			return true
		}
	}
	return false
}

// wireTrustDomain is the trust domain as workloads carry it.
func (s Settings) wireTrustDomain() string {
	if s.TrustDomain == DefaultTrustDomain {
		return ""
	}
	return s.TrustDomain
}

// entryVisibility says how far ServiceEntries of a namespace are seen: the first policy that matches its labels.
func (s Settings) entryVisibility(nsLabels map[string]string) apimesh.ServiceEntryVisibility_Visibility {
	if !s.visibilitySet {
		return apimesh.ServiceEntryVisibility_PUBLIC
	}
	give := s.otherwise
	for _, p := range s.visibility {
		if p.matches(nsLabels) {
			give = p.give
			break
		}
	}
	if give == apimesh.ServiceEntryVisibility_VISIBILITY_UNSPECIFIED {
		return apimesh.ServiceEntryVisibility_PUBLIC
	}
	return give
}

func (p visibilityPolicy) matches(nsLabels map[string]string) bool {
	if p.never {
		return false
	}
	for _, sel := range p.match {
		if !sel.Matches(labels.Set(nsLabels)) {
			return false
		}
	}
	return true
}
