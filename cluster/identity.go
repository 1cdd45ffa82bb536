package cluster

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/uuid"

	"concord/cluster/pki"
	"concord/fsm/seal"
)

// All files of a membership are below <prefix>/cluster, so that joining or leaving is the renaming of one directory:
//
//	node.json  who the node is      node.key node.crt ca.crt  its credentials
//	seal.key   the sealing keys     peers.json                the last known addresses of the others
//	raft/raft.db, raft/snapshots    the log
const (
	dirName    = "cluster"
	newDirName = "cluster.new"
	oldDirName = "cluster.old"
	idFile     = "node.json"
	sealFile   = "seal.key"
	peersFile  = "peers.json"
	raftDir    = "raft"
	logFile    = "raft.db"
)

// phase says how far a membership has come; it decides what a missing log means.
type phase string

const (
	forming phase = "forming" // a cluster of one, its log may not exist yet
	joining phase = "joining" // admitted, its log may not exist yet
	member  phase = "member"  // has a log: if it is missing, votes and entries are lost
)

type identity struct {
	NodeID    string `json:"node_id"`
	ClusterID string `json:"cluster_id"`
	Phase     phase  `json:"phase"`
}

func newIdentity() identity {
	return identity{NodeID: uuid.NewString(), ClusterID: uuid.NewString(), Phase: forming}
}

func (id identity) save(dir string) error {
	b, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	return pki.WriteFile(filepath.Join(dir, idFile), append(b, '\n'))
}

func loadIdentity(dir string) (identity, error) {
	path := filepath.Join(dir, idFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return identity{}, err
	}
	var id identity
	err = json.Unmarshal(b, &id)
	if err == nil && (uuid.Validate(id.NodeID) != nil || uuid.Validate(id.ClusterID) != nil) {
		err = errors.New("it names no node and cluster")
	}
	if err != nil {
		return identity{}, fmt.Errorf("%s is damaged: %w; restore it, or remove the node from the cluster, empty its prefix and let it join again", path, err)
	}
	return id, nil
}

// LoadKeys gives the sealing keys of the node with this prefix; on a fresh prefix it makes them. It is called before Open, because
// the machine needs the keys.
func LoadKeys(prefix string) (*seal.Keyring, error) {
	if err := prepare(prefix); err != nil {
		return nil, err
	}
	dir := filepath.Join(prefix, dirName)
	path := filepath.Join(dir, sealFile)
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return seal.Load(path)
	}
	if _, err := os.Stat(filepath.Join(dir, raftDir)); err == nil {
		return nil, fmt.Errorf("%s is missing: without it the data of this node cannot be read; copy it from another node of the cluster", path)
	}
	keys, err := seal.Generate(rand.Reader)
	if err != nil {
		return nil, err
	}
	return keys, keys.Save(path)
}

// prepare makes the directories and finishes a switch of clusters that was interrupted.
func prepare(prefix string) error {
	if err := os.MkdirAll(prefix, 0o700); err != nil {
		return err
	}
	dir, fresh, old := filepath.Join(prefix, dirName), filepath.Join(prefix, newDirName), filepath.Join(prefix, oldDirName)
	_, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.Rename(fresh, dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := errors.Join(os.RemoveAll(fresh), os.RemoveAll(old)); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir), 0o700); err != nil {
		return err
	}
	return os.Chmod(dir, 0o700)
}

// stage writes the directory of another membership beside the present one.
func stage(prefix string, id identity, keys *seal.Keyring, creds *pki.Credentials) error {
	dir := filepath.Join(prefix, newDirName)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if creds != nil {
		if err := creds.Save(dir); err != nil {
			return err
		}
	}
	return errors.Join(keys.Save(filepath.Join(dir, sealFile)), id.save(dir))
}

// unstage throws away what stage wrote.
func unstage(prefix string) error { return os.RemoveAll(filepath.Join(prefix, newDirName)) }

// commitStage replaces the present membership by the staged one. After a crash in between, prepare finishes it.
func commitStage(prefix string) error {
	dir, fresh, old := filepath.Join(prefix, dirName), filepath.Join(prefix, newDirName), filepath.Join(prefix, oldDirName)
	if err := os.RemoveAll(old); err != nil {
		return err
	}
	if err := os.Rename(dir, old); err != nil {
		return err
	}
	if err := errors.Join(os.Rename(fresh, dir), pki.SyncDir(prefix)); err != nil {
		return err
	}
	return os.RemoveAll(old)
}

// peer is where a member was last known to be.
type peer struct {
	ID      string `json:"id"`
	Address string `json:"address"`
}

func savePeers(dir string, peers []peer) error {
	b, err := json.MarshalIndent(peers, "", "  ")
	if err != nil {
		return err
	}
	return pki.WriteFile(filepath.Join(dir, peersFile), append(b, '\n'))
}

// loadPeers is best effort: the list only helps to find the others.
func loadPeers(dir string) []peer {
	b, err := os.ReadFile(filepath.Join(dir, peersFile))
	if err != nil {
		return nil
	}
	var peers []peer
	if json.Unmarshal(b, &peers) != nil {
		return nil
	}
	return peers
}
