package cluster

import (
	"context"
	"errors"
	"time"

	"concord/fsm"
	"concord/fsm/command"
	"concord/fsm/entity"
)

// The three keys of TLS session tickets. A node that is one rotation behind, or ahead, still reads what the others write: what comes
// next is known before it is used.
const (
	ticketCurrent = iota
	ticketPrevious
	ticketNext
	ticketKeys
)

// rotateTickets makes the keys of TLS session tickets and moves them on by one when they are old. A ticket is thus readable for one to
// two lives of a key; what was recorded before cannot be decrypted with what is found on a node afterwards. Before all members
// know the table each node makes keys of its own.
func (d *duties) rotateTickets(ctx context.Context, _ map[string]peerStatus) error {
	if d.machine.Level() < entity.SharedLevel {
		return nil
	}
	row, ok := d.rows.ticket.Get(d.rows.store.View(), metaID)
	life := d.opt.Tuning.TicketKeyLife
	if age := time.Duration((now() - row.Val.RotatedAt) * float64(time.Second)); ok && age < life && age > -life { // the clock may have been set back
		return nil
	}
	next := entity.TLSTicketKeys{ID: metaID.String(), RotatedAt: now(), Keys: make([]string, ticketKeys)}
	index := command.IfAbsent
	old := row.Val.Keys
	if ok {
		index = row.Index
	}
	for i := range next.Keys {
		switch {
		case i == ticketCurrent && len(old) == ticketKeys:
			next.Keys[i] = old[ticketNext]
		case i == ticketPrevious && len(old) == ticketKeys:
			next.Keys[i] = old[ticketCurrent]
		default:
			var err error
			if next.Keys[i], err = newSecretKey(); err != nil {
				return err
			}
		}
	}
	put, err := d.rows.put(next.ID, &next, index, 0)
	if err != nil {
		return err
	}
	res, err := d.propose(ctx, command.Command{Level: entity.SharedLevel, Actor: "cluster", Op: command.Txn{Puts: []command.Put{put}}})
	err = errors.Join(err, res.Err)
	if conflict := (*fsm.ConflictError)(nil); errors.As(err, &conflict) { // another leader has done it
		return nil
	}
	return err
}
