package pki

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// The files of a node's credentials below a directory.
const (
	keyFile  = "node.key"
	certFile = "node.crt"
	caFile   = "ca.crt"
)

// Save writes the credentials below dir, every file with mode 0600.
func (c *Credentials) Save(dir string) error {
	key, err := keyPEM(c.Key.signer)
	if err != nil {
		return err
	}
	// The certificate comes last: Load takes its presence as the sign that all is there.
	for _, f := range []struct {
		name string
		data []byte
	}{{keyFile, key}, {caFile, certPEM(c.CA.Raw)}, {certFile, certPEM(c.Leaf.Raw)}} {
		if err := WriteFile(filepath.Join(dir, f.name), f.data); err != nil {
			return err
		}
	}
	return nil
}

// Load reads what Save wrote. Without a certificate the error is fs.ErrNotExist.
func Load(dir, clusterID, nodeID string) (*Credentials, error) {
	var err error
	read := func(name string) []byte {
		if err != nil {
			return nil
		}
		var b []byte
		b, err = os.ReadFile(filepath.Join(dir, name))
		return b
	}
	leafPEM, caPEM, key := read(certFile), read(caFile), read(keyFile)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, certFile)
	leaf, err := ParseCertificate(leafPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if _, err := ParseCertificate(caPEM); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, caFile), err)
	}
	signer, err := parseKey(key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, keyFile), err)
	}
	c, err := NewCredentials(clusterID, nodeID, Key{signer}, leaf.Raw, string(caPEM))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// WriteFile replaces a file so that after a crash either the old or the new content is there, with mode 0600.
func WriteFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes renames in a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	if errors.Is(err, fs.ErrInvalid) { // some file systems cannot sync directories
		return nil
	}
	return err
}
