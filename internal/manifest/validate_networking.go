package manifest

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	apinetworking "istio.io/api/networking/v1alpha3"
	"k8s.io/apimachinery/pkg/util/validation"
)

// validateMeta checks what an API server would check of the name; the rest of the metadata is free text here.
func validateMeta(o Object, p *problems) {
	switch {
	case o.GetName() == "":
		p.add("metadata.name", "is empty; name the object")
	case len(validation.IsDNS1123Subdomain(o.GetName())) > 0:
		p.add("metadata.name", "value %q is no object name; use lower-case letters, digits, '-' and '.'", o.GetName())
	}
	if ns := o.GetNamespace(); ns != "" && len(validation.IsDNS1123Label(ns)) > 0 {
		p.add("metadata.namespace", "value %q is no namespace name; use lower-case letters, digits and '-'", ns)
	}
	validateLabels("metadata.labels", o.GetLabels(), p)
}

func validateLabels(at string, labels map[string]string, p *problems) {
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		v := labels[k]
		if bad := validation.IsQualifiedName(k); len(bad) > 0 {
			p.add(at, "key %q is no label key: %s", k, strings.Join(bad, "; "))
		}
		if bad := validation.IsValidLabelValue(v); len(bad) > 0 {
			p.add(at+"["+k+"]", "value %q is no label value: %s", v, strings.Join(bad, "; "))
		}
	}
}

func validateServiceEntry(spec *apinetworking.ServiceEntry, p *problems) {
	if len(spec.GetHosts()) == 0 {
		p.add("spec.hosts", "is empty; name at least one host")
	}
	for i, h := range spec.GetHosts() {
		at := fmt.Sprintf("spec.hosts[%d]", i)
		switch {
		case h == "*":
			p.add(at, "value \"*\" would catch every name; name a domain")
		case !validHost(h):
			p.add(at, "value %q is no host name, nor one with *. before it", h)
		}
	}
	validateBlocks("spec.addresses", spec.GetAddresses(), p)
	names, numbers := map[string]bool{}, map[uint32]bool{}
	for i, port := range spec.GetPorts() {
		at := fmt.Sprintf("spec.ports[%d]", i)
		if n := port.GetNumber(); n == 0 || n > 65535 {
			p.add(at+".number", "value %d is no port; want 1 to 65535", n)
		}
		if n := port.GetTargetPort(); n > 65535 {
			p.add(at+".targetPort", "value %d is no port; want 1 to 65535", n)
		}
		if port.GetName() == "" {
			p.add(at+".name", "is empty; name the port")
		}
		if names[port.GetName()] {
			p.add(at+".name", "value %q is used by another port; port names are unique", port.GetName())
		}
		if numbers[port.GetNumber()] {
			p.add(at+".number", "value %d is used by another port; port numbers are unique", port.GetNumber())
		}
		names[port.GetName()], numbers[port.GetNumber()] = true, true
	}
	if len(spec.GetWorkloadSelector().GetLabels()) > 0 && len(spec.GetEndpoints()) > 0 {
		p.add("spec.workloadSelector", "excludes endpoints; keep one of the two")
	}
	validateEndpoints(spec, names, p)
}

func validateEndpoints(spec *apinetworking.ServiceEntry, names map[string]bool, p *problems) {
	for i, e := range spec.GetEndpoints() {
		at := fmt.Sprintf("spec.endpoints[%d]", i)
		validateWorkloadEntry(at, e, p)
		for _, n := range slices.Sorted(maps.Keys(e.GetPorts())) {
			if !names[n] {
				p.add(at+".ports["+n+"]", "names a port that spec.ports does not have")
			}
		}
	}
	if spec.GetResolution() == apinetworking.ServiceEntry_NONE && len(spec.GetEndpoints()) > 0 {
		p.add("spec.endpoints", "have no effect with resolution NONE; remove them or choose STATIC or DNS")
	}
}

func validateWorkloadEntry(at string, e *apinetworking.WorkloadEntry, p *problems) {
	if e.GetAddress() == "" && e.GetNetwork() == "" {
		p.add(at+".address", "is empty; give an address, or a network whose gateway leads there")
	}
	for _, n := range slices.Sorted(maps.Keys(e.GetPorts())) {
		if v := e.GetPorts()[n]; v == 0 || v > 65535 {
			p.add(at+".ports["+n+"]", "value %d is no port; want 1 to 65535", v)
		}
	}
	if strings.HasPrefix(e.GetAddress(), "unix://") && len(e.GetPorts()) > 0 {
		p.add(at+".ports", "cannot stand beside a unix socket address")
	}
}

func validHost(h string) bool {
	h = strings.TrimPrefix(h, "*.")
	if h == "" || len(h) > 253 {
		return false
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(h, "."), ".") {
		if len(validation.IsDNS1123Label(strings.ToLower(strings.ReplaceAll(label, "_", "-")))) > 0 {
			return false
		}
	}
	return true
}
