package manifest

import (
	"encoding/json"
	"fmt"

	"sigs.k8s.io/yaml"
)

// Encode writes o as one YAML document with sorted keys, equal objects giving equal bytes. Metadata that nobody set and
// a status without content are left out.
func Encode(o Object) ([]byte, error) {
	tree, err := Tree(o)
	if err != nil {
		return nil, err
	}
	out, err := yaml.Marshal(tree)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", KeyOf(o), err)
	}
	return out, nil
}

// Tree returns o as the nested maps that its YAML form has.
func Tree(o Object) (map[string]any, error) {
	k := typeOf(o)
	raw, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", KeyOf(o), err)
	}
	tree := map[string]any{}
	if err := yaml.Unmarshal(raw, &tree); err != nil {
		return nil, fmt.Errorf("encode %s: %w", KeyOf(o), err)
	}
	tree["apiVersion"], tree["kind"] = k.gvk().GroupVersion().String(), k.kind
	if meta, ok := tree["metadata"].(map[string]any); ok {
		if v, there := meta["creationTimestamp"]; there && v == nil {
			delete(meta, "creationTimestamp")
		}
	}
	if s, there := tree["status"]; there && hollow(s) {
		delete(tree, "status")
	}
	dropTemplateTimes(tree["spec"])
	return tree, nil
}

// dropTemplateTimes removes the null creation times that pod templates inside workloads marshal to.
func dropTemplateTimes(spec any) {
	m, _ := spec.(map[string]any)
	template, _ := m["template"].(map[string]any)
	meta, _ := template["metadata"].(map[string]any)
	if v, there := meta["creationTimestamp"]; there && v == nil {
		delete(meta, "creationTimestamp")
	}
}

// hollow says that nothing but empty maps and nulls is in v. A list is content even when empty, and so are 0 and "".
func hollow(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case map[string]any:
		for _, e := range v {
			if !hollow(e) {
				return false
			}
		}
		return true
	}
	return false
}
