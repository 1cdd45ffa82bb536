package service

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/hex"
	"strings"
	"sync"
	"time"

	"concord/fsm/entity"
	"concord/fsm/schema"
	"concord/fsm/state"
)

// TokenPrefix begins every admin token, so that people and scanners know one when they see it.
const TokenPrefix = "gwat_"

// A token is the prefix and, in lower-case base32, the id of its row and 192 random bits: 40 bytes, which need no padding.
const tokenSecret = 24

var tokenText = base32.StdEncoding.WithPadding(base32.NoPadding)

// splitToken is the id and the secret of a token's text.
func splitToken(text string) (id state.ID, secret []byte, ok bool) {
	body, ok := strings.CutPrefix(text, TokenPrefix)
	if !ok || body != strings.ToLower(body) {
		return id, nil, false
	}
	raw, err := tokenText.DecodeString(strings.ToUpper(body))
	if err != nil || len(raw) != len(id)+tokenSecret {
		return id, nil, false
	}
	return state.ID(raw[:len(id)]), raw[len(id):], true
}

// hashToken is what is stored of a secret. It has 192 random bits, so that a slow hash would add nothing.
func hashToken(secret []byte) string {
	sum := sha256.Sum256(secret)
	return hex.EncodeToString(sum[:])
}

// CreateToken makes an admin token: body has its name, role, entities, tags and ttl in seconds. The text is in no later answer.
func (s *Service) CreateToken(ctx context.Context, body schema.Record, form bool) (text string, res Result, err error) {
	for _, name := range []string{"id", "hash", "created_at"} {
		if _, ok := body[name]; ok {
			return "", Result{}, violation(schema.Errors{name: "is made by the gateway"})
		}
	}
	var raw [16 + tokenSecret]byte
	rand.Read(raw[:]) // never fails (crypto/rand)
	raw[6], raw[8] = raw[6]&0x0f|0x40, raw[8]&0x3f|0x80
	id := state.ID(raw[:16])
	rec := schema.Record{"id": id.String(), "hash": hashToken(raw[16:])}
	for k, v := range body {
		rec[k] = v
	}
	res, err = s.Mutate(ctx, Mutation{Verb: Create, Target: Target{Entity: entity.AdminTokens}, Body: rec, Form: form})
	return TokenPrefix + strings.ToLower(tokenText.EncodeToString(raw[:])), res, err
}

// Authenticate returns the id of the row of a token that is valid now.
func (s *Service) Authenticate(ctx context.Context, text string) (id string, err error) {
	key, secret, ok := splitToken(text)
	if !ok {
		return "", unauthenticated("that is no admin token")
	}
	view := s.store.View().At(time.Now().UnixMilli())
	row, found := s.tables[entity.AdminTokens].Get(view, key)
	if !found { // it may have been made at another node a moment ago
		row, found = s.tables[entity.AdminTokens].Get(s.fresh(ctx), key)
	}
	hash := strings.Repeat("-", 2*sha256.Size)
	if t, ok := row.Val.(*entity.AdminToken); found && ok {
		hash = t.Hash
	}
	if subtle.ConstantTimeCompare([]byte(hash), []byte(hashToken(secret))) != 1 {
		return "", unauthenticated("the admin token is not known, has expired or was revoked")
	}
	s.used.note(key, time.Now())
	return key.String(), nil
}

// LastUsed is when this node last saw the token, the zero time if it has not since its start.
func (s *Service) LastUsed(tokenID string) time.Time {
	id, err := state.ParseID(tokenID)
	if err != nil {
		return time.Time{}
	}
	return s.used.at(id)
}

// HasTokens tells whether there is an admin token, as far as this node knows.
func (s *Service) HasTokens() bool {
	for range s.tables[entity.AdminTokens].Scan(s.store.View().At(time.Now().UnixMilli()), "", "", state.ID{}) {
		return true
	}
	return false
}

// usage remembers when valid tokens were last used. Only tokens that exist get in, and those that are gone are dropped when
// it has doubled.
type usage struct {
	mu   sync.Mutex
	last map[state.ID]time.Time
	trim int
	live func(state.ID) bool
}

func (u *usage) note(id state.ID, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if _, known := u.last[id]; !known && len(u.last) >= u.trim {
		for old := range u.last {
			if !u.live(old) {
				delete(u.last, old)
			}
		}
		u.trim = max(64, 2*len(u.last))
	}
	u.last[id] = now
}

func (u *usage) at(id state.ID) time.Time {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.last[id]
}
