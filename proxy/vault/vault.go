// Package vault resolves {vault://…} references, which stand for a value that is kept elsewhere: in the node's environment, or in files
// as container platforms mount secrets. References are stored and replicated as they are; each node resolves them for itself.
//
// The package caches nothing and watches nothing: whoever uses a value decides when to ask again.
package vault

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"

	"concord/fsm/entity"
	"concord/fsm/schema"
)

// maxFile bounds a secret's file, in bytes.
const maxFile = 1 << 20

// Reference is a parsed {vault://<vault>/<key>[/<sub>][?prefix=…]}: <vault> is the prefix of a vaults entity, or "env"; <sub> is a member of the value,
// which then is a JSON object.
type Reference struct {
	Vault, Key, Sub string
	Options         url.Values // overrides of the vault's configuration
}

// Parse reads a reference. The grammar is Kong's.
func Parse(text string) (Reference, error) {
	if !schema.IsVaultReference(text) {
		return Reference{}, fmt.Errorf("not a vault reference: must have the form {vault://vault/key}")
	}
	u, err := url.Parse(text[1 : len(text)-1])
	if err != nil {
		return Reference{}, fmt.Errorf("vault reference: %w", errors.Unwrap(err))
	}
	r := Reference{Vault: u.Host, Options: u.Query()}
	r.Key, r.Sub, _ = strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	if r.Vault == "" || r.Key == "" {
		return Reference{}, errors.New("vault reference: needs a vault and a key: {vault://vault/key}")
	}
	return r, nil
}

// Resolver looks references up.
type Resolver struct {
	// Find is the vaults entity with a prefix; nil: there are none.
	Find func(prefix string) (*entity.Vault, bool)
	// Getenv is os.LookupEnv, but for tests.
	Getenv func(name string) (string, bool)
}

// Resolve returns what a reference stands for. Errors name the reference, never a value.
func (r *Resolver) Resolve(text string) (string, error) {
	ref, err := Parse(text)
	if err != nil {
		return "", err
	}
	value, err := r.value(ref)
	if err == nil && ref.Sub != "" {
		value, err = member(value, ref.Sub)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", text, err)
	}
	return value, nil
}

func (r *Resolver) value(ref Reference) (string, error) {
	kind, config := ref.Vault, json.RawMessage(nil)
	if ref.Vault != "env" {
		found := false
		if r.Find != nil {
			var v *entity.Vault
			if v, found = r.Find(ref.Vault); found {
				kind, config = v.Name, v.Config
			}
		}
		if !found {
			return "", fmt.Errorf("there is no vault with the prefix %q: create one at /vaults", ref.Vault)
		}
	}
	switch kind {
	case "env":
		var c entity.EnvVault
		if err := decode(config, &c); err != nil {
			return "", err
		}
		if ref.Options.Has("prefix") {
			c.Prefix = ref.Options.Get("prefix")
		}
		return r.env(c.Prefix + ref.Key)
	case "file":
		var c entity.FileVault
		if err := decode(config, &c); err != nil {
			return "", err
		}
		return readFile(c.Directory, ref.Key)
	}
	return "", fmt.Errorf("this node knows no vault of the kind %q", kind)
}

func decode(config json.RawMessage, into any) error {
	if len(config) == 0 {
		return nil
	}
	return json.Unmarshal(config, into)
}

// env reads a variable by Kong's rule: capitals, and "_" for "-".
func (r *Resolver) env(name string) (string, error) {
	get := r.Getenv
	if get == nil {
		get = os.LookupEnv
	}
	name = strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
	value, ok := get(name)
	if !ok {
		return "", fmt.Errorf("the environment has no variable %s", name)
	}
	return value, nil
}

// readFile reads one file of the directory; links must not lead out of it.
func readFile(dir, name string) (string, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer root.Close()
	switch info, err := root.Stat(name); {
	case err != nil:
		return "", err
	case !info.Mode().IsRegular(): // opening a pipe waits for its writer, and a handshake with it
		return "", errors.New("it is not a regular file")
	}
	f, err := root.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return "", err
	}
	if len(b) > maxFile {
		return "", fmt.Errorf("the file is larger than %d bytes", maxFile)
	}
	return strings.TrimSuffix(string(b), "\n"), nil // editors and echo put one there
}

// member is one value of a JSON object, as text.
func member(value, name string) (string, error) {
	var m map[string]any
	if err := json.Unmarshal([]byte(value), &m); err != nil {
		return "", errors.New("the value is not a JSON object, so it has no member")
	}
	switch v := m[name].(type) {
	case string:
		return v, nil
	case float64, bool:
		return fmt.Sprint(v), nil
	}
	return "", fmt.Errorf("the value has no member %q that is a text or a number", name)
}
