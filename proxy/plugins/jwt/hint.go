package jwt

import (
	"strings"
	"time"

	"concord/fsm/state"
)

// hintEvery bounds the hints one instance writes, in seconds: anybody can send bad tokens.
const hintEvery = 10

// Hints explain to the operator what a client, who may be anybody, is not told.
func (i *instance) hint(msg string, args ...any) {
	if i.mayHint() {
		i.log.Warn(msg, args...)
	}
}

func (i *instance) mayHint() bool {
	now, last := time.Now().Unix(), i.lastHint.Load()
	return now-last >= hintEvery && i.lastHint.CompareAndSwap(last, now)
}

// hintNoKey is for a token without the claim that names the credential.
func (i *instance) hintNoKey(t *token) {
	kid := find(t.header, "kid")
	if kid == nil {
		kid = find(t.claims, "kid")
	}
	if kid == nil || i.KeyClaimName == "kid" {
		return
	}
	i.hint("token names its key by 'kid', the plugin expects '"+i.KeyClaimName+"': set config.key_claim_name to kid, or sign tokens with '"+i.KeyClaimName+"'",
		"kid", shorten(kid.raw))
}

// hintUnknownKey is for a token whose credential does not exist.
func (i *instance) hintUnknownKey(v *state.View, t *token, key string) {
	other := key + "/"
	if k, ok := strings.CutSuffix(key, "/"); ok {
		other = k
	}
	if row, ok := i.secrets.By(v, "key", other); ok {
		i.hint("token's '"+i.KeyClaimName+"' differs from a credential's key only by a trailing slash: make them equal",
			"token", shorten([]byte(key)), "credential", row.Val.ID, "key", row.Val.Key)
		return
	}
	if kid := find(t.header, "kid"); kid != nil && kid.kind == kindString && i.KeyClaimName != "kid" {
		if row, ok := i.secrets.By(v, "key", string(kid.text())); ok {
			i.hint("token's 'kid' is the key of a credential, its '"+i.KeyClaimName+"' is not: set config.key_claim_name to kid, or the credential's key to the '"+i.KeyClaimName+"'",
				i.KeyClaimName, shorten([]byte(key)), "credential", row.Val.ID)
		}
	}
}

func shorten(b []byte) string {
	if len(b) > 128 {
		return string(b[:128]) + "…"
	}
	return string(b)
}
