package fsm

import (
	"fmt"

	"concord/fsm/state"
)

// The errors of a Result say why an entry changed nothing. They are the same on every node.
type (
	// UniqueError: another row holds a key of a unique index.
	UniqueError struct {
		Table, Index string
		Key          string // clear text, even of a sealed field: not for logs
		Existing     state.ID
	}
	// ForeignKeyError: the row refers to a row that does not exist.
	ForeignKeyError struct {
		Table, Field, Ref string
		ID                state.ID
	}
	// RestrictedError: the row cannot be deleted because another one refers to it.
	RestrictedError struct {
		Table, By string
		ID, ByID  state.ID
	}
	// ConflictError: the row is not at the index that the put expected.
	ConflictError struct {
		Table string
		ID    state.ID
		Index uint64 // of the row now, 0: it does not exist
	}
	// NotFoundError: the row to delete does not exist.
	NotFoundError struct {
		Table string
		ID    state.ID
	}
	// TwiceError: a transaction writes one row twice.
	TwiceError struct {
		Table string
		ID    state.ID
	}
)

func (e *UniqueError) Error() string {
	return fmt.Sprintf("%s: %s is already used by %s", e.Table, e.Index, e.Existing)
}

func (e *ForeignKeyError) Error() string {
	return fmt.Sprintf("%s: field %s refers to %s %s, which does not exist", e.Table, e.Field, e.Ref, e.ID)
}

func (e *RestrictedError) Error() string {
	return fmt.Sprintf("%s %s is still referred to by %s %s: delete that first", e.Table, e.ID, e.By, e.ByID)
}

func (e *ConflictError) Error() string {
	if e.Index == 0 {
		return fmt.Sprintf("%s %s does not exist any more: read it again", e.Table, e.ID)
	}
	return fmt.Sprintf("%s %s was changed by log entry %d: read it again and retry", e.Table, e.ID, e.Index)
}

func (e *NotFoundError) Error() string { return fmt.Sprintf("%s %s does not exist", e.Table, e.ID) }

func (e *TwiceError) Error() string {
	return fmt.Sprintf("%s %s is written twice by one transaction", e.Table, e.ID)
}

// LevelError says that an entry or a snapshot needs a newer binary.
type LevelError struct{ Need, Have uint32 }

func (e *LevelError) Error() string {
	return fmt.Sprintf("needs cluster level %d, this binary understands levels up to %d: install the newer version on this node", e.Need, e.Have)
}

// FatalError ends the machine: this node cannot do what the log says, so it must stop before its state differs from its
// peers'. It wraps a *LevelError, a *seal.MissingKeyError, command.ErrCorrupt or command.ErrUnknown. The state is as before the entry, and
// every later entry gets the same error until Restore or Reset.
type FatalError struct {
	Index uint64
	Err   error
}

func (e *FatalError) Error() string { return fmt.Sprintf("log entry %d: %v", e.Index, e.Err) }
func (e *FatalError) Unwrap() error { return e.Err }
