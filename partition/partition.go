package partition

import (
	"encoding/binary"
	"errors"
	"sync/atomic"
	"time"

	"github.com/lockstepmq/lockstep/internal/invariants"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// Limits of one owner turn.
const (
	// MaxTurnBytes bounds what one turn proposes; the rest waits for the next.
	MaxTurnBytes = 4 << 20
	// groupBytes is what must wait before a further entry is proposed while
	// earlier ones are on their way to the disk. Less than that joins the entry
	// after the sync that is running (group commit).
	groupBytes = 64 << 10
)

// Room that entries leave behind them in what is allocated, in bytes, so that a
// restart on a disk without a single free block can elect: nothing of it can be
// taken by anybody else, as the reserve of the store can.
const (
	// ControlRoom is left by records, for a few trims and what those leave.
	ControlRoom = 4 << 10
	// ElectionRoom is left by control entries: a restart takes a frame header of it.
	ElectionRoom = 2 << 10
)

var (
	// ErrMailboxFull is returned by Append when the owner does not keep up. The
	// batch was not taken; sending it again later is safe.
	ErrMailboxFull = errors.New("partition mailbox is full")
	// ErrMemoryFull is returned by Append when the partitions of the node hold
	// together what Config.Memory allows, or more than half of it and this one more
	// than its share. The batch was not taken; sending it again later is safe.
	ErrMemoryFull = errors.New("memory for records on their way is used up")
	// ErrClosed is returned by Append after Close.
	ErrClosed = errors.New("partition is closed")
)

// Proposer puts entries into the partition's replicated log. Its methods are
// called in the owner's turn. Propose may call back Apply before it returns.
type Proposer interface {
	// Leading reports whether proposals are taken, and the term to stamp.
	Leading() (wire.Term, bool)
	// NextOffset is the offset of the next proposed record.
	NextOffset() wire.Offset
	// Propose takes ownership of data and returns once it is in the log.
	Propose(data []byte) (wire.Index, error)
	// Paused says that proposals would be dropped for the moment although this replica
	// leads: what waits stays where it is.
	Paused() bool
	// Holders is how many replicas are known to hold the committed entry at i.
	Holders(i wire.Index) int
}

// Log is what the owner's shell needs of the partition's log. *log.Log is one.
type Log interface {
	// Reserve reports whether n more frame bytes fit: nil, log.ErrNotReady (a later
	// turn will tell), log.ErrDiskFull, or why the log serves no longer.
	Reserve(n int64, records bool) error
	// Trim moves the start of what may be read.
	Trim(start wire.Offset)
	// RetentionPoint is where the policy would put the start; negative limits are none.
	RetentionPoint(nowMs int64, maxAge time.Duration, maxBytes int64) (wire.Offset, bool)
	// Bytes is the size of the log.
	Bytes() int64
	// BodyAt is where the body of applied entry i lies, which has bodyBytes bytes. It is
	// false if its place is not in memory any more.
	BodyAt(i wire.Index, bodyBytes int) (log.Position, bool)
	// KeepKeys says whether somebody asks for records by the hashes of their keys or
	// publishers.
	KeepKeys(on bool)
}

// Receiver learns the outcome of an Append, once, except for AcksNone, where it
// learns nothing. It is called in an owner's turn and must not block. With NOT_LEADER
// the receipt's BaseOffset says who leads, as wire.Error.Next does.
type Receiver interface {
	Appended(tag uint64, receipt wire.Receipt, code wire.ErrorCode)
}

// Append is one batch to be appended. Batch and Index are copied.
type Append struct {
	Batch, Index []byte
	Info         wire.BatchInfo // of Batch, as ValidateBatch returned it
	Acks         wire.Acks
	Receiver     Receiver
	Tag          uint64 // handed back to the receiver
}

// Entry is one committed entry of the partition's log.
type Entry struct {
	Index        wire.Index
	Term         wire.Term
	Kind         wire.Kind
	RecordCount  uint32
	BaseOffset   wire.Offset
	AppendTimeMs int64
	Body         []byte // a view, valid during Apply only
	Damaged      bool   // the body is damaged on the disk and empty here; records only
}

// Retention says how much of the past a partition keeps.
type Retention struct {
	Age   time.Duration // 0 keeps everything
	Bytes int64         // 0 keeps everything
}

// Threshold says how much a partition may hold before it refuses more. The entry with
// which it is reached is still taken.
type Threshold struct {
	Records uint64 // 0 is no threshold
	Bytes   uint64 // 0 is no threshold
}

// Config says what a partition consists of.
type Config struct {
	Log          Log
	State        *State
	Synced       bool    // receipts may say so: records are synced before they are acknowledged
	MailboxBytes int64   // 0 means DefaultMailboxBytes
	Memory       *Memory // nil means that nothing bounds what the partitions hold together
	Retention    Retention
	Threshold    Threshold
	SendDisabled bool // see Partition.SetSendDisabled
	// Fenced says of an epoch of a producer that another holder of its name has ended it.
	// It does not block. nil: no.
	Fenced func(id int64, epoch int16) bool
	Queue  bool // records are removed when all groups are done with them
	// Groups is what groups need of the world. Nil means that there are none: what is
	// put is refused.
	Groups Effects
}

// Partition is the owner's shell around the State of one replica. Append may be
// called from any goroutine; everything else is owner only.
type Partition struct {
	mailbox   mailbox
	account   account
	log       Log
	state     *State
	proposer  Proposer
	synced    bool
	retention Retention
	threshold Threshold
	full      atomic.Bool
	fenced    func(id int64, epoch int16) bool
	closed    bool        // to new records
	weak      wire.Offset // records below it were proposed when they needed no sync to be acknowledged

	held     []*draft // taken from the mailbox, [heldNext:] not proposed yet
	heldNext int
	pending  []pending // proposed and not applied, oldest first
	overlay  map[int64]*overlay
	spare    []*overlay
	term     wire.Term // of the pending entries
	applied  wire.Index

	appliedTerm wire.Term // of the last applied entry
	queue       bool
	groups      Groups
	fences      fences
}

type pending struct {
	draft *draft
	base  wire.Offset
}

// overlay is what a producer has proposed in this term beyond the applied table.
type overlay struct {
	epoch   int16
	next    int32
	batches []flying
}

type flying struct {
	epoch    int16 // of the batch: a newer holder of the producer begins at sequence 0 again
	sequence int32
	count    uint32
	offset   wire.Offset
	also     []waiter // duplicates that came while the original was on its way
}

type waiter struct {
	receiver Receiver
	tag      uint64
}

// New makes the shell. Bind gives it its proposer before the first turn.
func New(cfg Config) *Partition {
	if cfg.MailboxBytes == 0 {
		cfg.MailboxBytes = DefaultMailboxBytes
	}
	p := &Partition{
		mailbox: mailbox{limit: cfg.MailboxBytes}, account: account{memory: cfg.Memory}, log: cfg.Log, state: cfg.State,
		synced: cfg.Synced, retention: cfg.Retention, threshold: cfg.Threshold, closed: cfg.SendDisabled, fenced: cfg.Fenced, overlay: make(map[int64]*overlay),
		queue: cfg.Queue, groups: Groups{effects: cfg.Groups},
	}
	p.mailbox.account = &p.account
	p.groups.p = p
	return p
}

// Recycle takes the data of an entry back that was proposed here and that nothing
// refers to any more. What is smaller than any buffer of ours consensus has made
// itself, and nobody has paid for it.
func (p *Partition) Recycle(data []byte) {
	if cap(data) >= bufferClasses[0] {
		p.account.recycle(data)
	}
}

// Buffers is where the data of entries goes that another replica sends.
func (p *Partition) Buffers() Buffers { return Buffers{&p.account} }

// Forget gives back all memory that the partition has taken, after Close and once
// its log, which may hold entries for good if it was fenced, is closed too.
func (p *Partition) Forget() { p.account.give(p.account.held.Load()) }

// Bind names the proposer once the state is what it was before the restart, or what
// another replica has sent. A trim that lies below the checkpoint is not applied again, so
// the log learns the start here.
func (p *Partition) Bind(proposer Proposer) {
	p.groups.abandon(wire.CodeNotLeader)
	p.proposer = proposer
	p.log.Trim(p.state.start)
}

// SetPolicy changes the retention and whether quorum acknowledgements mean
// synced records.
func (p *Partition) SetPolicy(r Retention, synced bool) {
	if synced && !p.synced {
		p.weak = p.proposer.NextOffset() // not the applied ones only: some may be on their way
	}
	p.retention, p.synced = r, synced
}

// SetThreshold changes how much the partition may hold.
func (p *Partition) SetThreshold(t Threshold) { p.threshold = t }

// SetSendDisabled closes the partition to new records, or opens it: until then they
// are refused with SEND_DISABLED.
func (p *Partition) SetSendDisabled(closed bool) { p.closed = closed }

// Queue reports whether the partition is one of a queue. Any goroutine.
func (p *Partition) Queue() bool { return p.queue }

// Full reports whether the partition refuses records because it holds as many as its
// threshold says. Any goroutine.
func (p *Partition) Full() bool { return p.full.Load() }

// checkThreshold compares what the partition holds with its threshold.
func (p *Partition) checkThreshold() (full bool) {
	t := &p.threshold
	if t.Records > 0 || t.Bytes > 0 {
		full = t.Records > 0 && uint64(p.proposer.NextOffset()-p.state.start) >= t.Records || t.Bytes > 0 && uint64(p.log.Bytes()) >= t.Bytes
	}
	if p.full.Load() != full {
		p.full.Store(full)
	}
	return full
}

// Reject answers everything that waits and was not proposed with the reason err. It is
// for replicas that do not lead.
func (p *Partition) Reject(err error) {
	if p.groups.effects != nil {
		p.groups.reject(err)
	}
	p.fences.reject(codeOf(err))
	if p.heldNext == len(p.held) && p.mailbox.waiting() == 0 {
		return
	}
	code := codeOf(err)
	var known *wire.Error
	var r wire.Receipt
	if code == wire.CodeNotLeader && errors.As(err, &known) {
		r.BaseOffset = known.Next
	}
	p.rejectWaiting(r, code)
}

// rejectWaiting answers everything that waits and was not proposed.
func (p *Partition) rejectWaiting(r wire.Receipt, code wire.ErrorCode) {
	for ; p.heldNext < len(p.held); p.heldNext++ {
		p.refuse(p.held[p.heldNext], r, code)
	}
	for _, d := range p.mailbox.take(nil) {
		p.refuse(d, r, code)
	}
}

// Append copies one batch into the mailbox. When it returns nil the receiver
// will hear of the batch, unless Acks is AcksNone. The caller then sees to it
// that the owner takes a turn. Any goroutine.
func (p *Partition) Append(a Append) error {
	_, err := p.mailbox.put(&a)
	return err
}

// Waiting is how many bytes wait in the mailbox, and of inputs of groups, and how many fences
// do. Any goroutine.
func (p *Partition) Waiting() int64 {
	return p.mailbox.waiting() + p.groups.waiting() + int64(p.fences.waiting())
}

// Turn proposes what waits in the mailbox, at most MaxTurnBytes, and gives the groups
// their turn. It reports whether more could be done at once. nowMs becomes the append
// time; now is the time by a clock that only goes forward, by which timers go.
func (p *Partition) Turn(nowMs int64, now time.Duration) (again bool) {
	term, leading := p.proposer.Leading()
	if !leading || term != p.term {
		p.abandon(wire.CodeUnavailable)
		p.groups.abandon(wire.CodeNotLeader)
		p.term = term
	}
	again = leading && p.turnFences(nowMs)
	again = p.turnRecords(term, leading, nowMs) || again
	return leading && p.groups.turn(term, nowMs, now) || again
}

// turnRecords is the part of a turn that is about records.
func (p *Partition) turnRecords(term wire.Term, leading bool, nowMs int64) (again bool) {
	full := leading && p.checkThreshold()
	if !leading || p.proposer.Paused() {
		return false
	}
	if p.heldNext == len(p.held) {
		if len(p.pending) > 0 && p.mailbox.waiting() < groupBytes {
			return false
		}
		p.held, p.heldNext = p.mailbox.take(p.held), 0
	}
	for budget := MaxTurnBytes; p.heldNext < len(p.held); {
		if budget <= 0 {
			return true
		}
		d := p.held[p.heldNext]
		budget -= len(d.data)
		if p.closed {
			p.heldNext++
			p.refuse(d, wire.Receipt{}, wire.CodeSendDisabled)
			continue
		}
		if full {
			p.heldNext++
			p.refuse(d, wire.Receipt{}, wire.CodePartitionFull)
			continue
		}
		if err := p.log.Reserve(wire.FrameSize(len(d.data)-wire.EntryPrefixSize)+ControlRoom, true); err != nil {
			if errors.Is(err, log.ErrNotReady) {
				return false
			}
			p.heldNext++
			p.refuse(d, wire.Receipt{}, codeOf(err))
			continue
		}
		p.heldNext++
		p.propose(d, term, nowMs)
		full = p.checkThreshold()
	}
	// What came while drafts were held joins the entry after those on their way; if
	// none is, because all were refused, nothing else brings the next turn.
	return len(p.pending) == 0 && p.mailbox.waiting() > 0
}

// propose screens the batches of a draft, lays out what is left and proposes it.
func (p *Partition) propose(d *draft, term wire.Term, nowMs int64) {
	base := p.proposer.NextOffset()
	next := base
	write := wire.EntryPrefixSize
	kept := d.batches[:0]
	for _, b := range d.batches {
		if !p.admit(&b, next, term, nowMs) {
			continue
		}
		// Earlier batches may have been dropped: move this one up to them.
		length := b.end - b.start
		if write != b.start {
			copy(d.data[write:], d.data[b.start:b.end])
			b.batch -= b.start - write
		}
		b.start, b.end = write, write+length
		wire.PatchBatch(d.data[b.batch:b.end], next, int32(term))
		next += wire.Offset(b.info.RecordCount)
		write += length
		kept = append(kept, b)
	}
	clear(d.batches[len(kept):])
	d.batches = kept
	if len(kept) == 0 {
		p.account.recycle(d.data)
		p.account.free(d)
		return
	}
	data := d.data[:write]
	wire.PutEntryPrefix(data, wire.KindRecords, uint32(next-base), nowMs)
	d.data = nil
	// Applying may happen inside Propose, so the entry is pending before it.
	p.pending = append(p.pending, pending{draft: d, base: base})
	if _, err := p.proposer.Propose(data); err != nil {
		p.withdraw(d, data, codeOf(err))
		return
	}
	if n := len(p.pending); n > 0 && p.pending[n-1].draft == d {
		p.answerLeader(d, base, term, nowMs)
	}
}

// admit decides on one batch. It reports whether the batch is appended; if not,
// its sender is answered, or waits for the original that is on its way.
func (p *Partition) admit(b *placed, offset wire.Offset, term wire.Term, nowMs int64) bool {
	info := &b.info
	if info.ProducerID < 0 {
		return true
	}
	if (p.fences.ends(info.ProducerID, info.ProducerEpoch) || p.fenced != nil && p.fenced(info.ProducerID, info.ProducerEpoch)) && !unchecked(true) {
		b.answer(wire.Receipt{}, wire.CodeFenced)
		return false
	}
	o := p.overlay[info.ProducerID]
	known := p.state.producers.byID[info.ProducerID]
	var epoch int16
	var next int32
	switch {
	case o != nil:
		epoch, next = o.epoch, o.next
	case known != nil:
		epoch, next = known.epoch, known.next
	default:
		epoch, next = info.ProducerEpoch, info.BaseSequence
		if code := p.state.producers.judge(info); code != wire.CodeOK {
			b.answer(wire.Receipt{}, code)
			return false
		}
	}
	count := uint32(info.RecordCount)
	switch {
	case unchecked(info.ProducerEpoch != epoch):
	case info.ProducerEpoch < epoch:
		b.answer(wire.Receipt{}, wire.CodeFenced)
		return false
	case info.ProducerEpoch > epoch:
		if info.BaseSequence != 0 {
			b.answer(wire.Receipt{}, wire.CodeOutOfSequence)
			return false
		}
	case info.BaseSequence != next:
		p.answerDuplicate(b, o, known, next, term)
		return false
	}
	if o == nil {
		o = p.newOverlay()
		p.overlay[info.ProducerID] = o
	}
	o.epoch = info.ProducerEpoch
	o.next = addSequence(info.BaseSequence, count)
	o.batches = append(o.batches, flying{epoch: info.ProducerEpoch, sequence: info.BaseSequence, count: count, offset: offset})
	return true
}

// answerDuplicate answers a batch that does not carry the next sequence: it was
// sent before, or something before it is missing.
func (p *Partition) answerDuplicate(b *placed, o *overlay, known *producer, next int32, term wire.Term) {
	count := uint32(b.info.RecordCount)
	if o != nil {
		for i := range o.batches {
			f := &o.batches[i]
			if f.epoch == b.info.ProducerEpoch && f.sequence == b.info.BaseSequence && f.count == count {
				if b.acks != wire.AcksNone {
					f.also = append(f.also, waiter{b.receiver, b.tag})
				}
				return
			}
		}
	}
	if known != nil && known.epoch == b.info.ProducerEpoch {
		if offset, ok := known.find(b.info.BaseSequence, count); ok {
			r := p.receipt(offset, term, known.lastMs, p.applied)
			r.Duplicate = true
			b.answer(r, wire.CodeOK)
			return
		}
	}
	if ahead := uint32(b.info.BaseSequence-next) & sequenceMask; ahead < 1<<30 {
		b.answer(wire.Receipt{}, wire.CodeOutOfSequence)
		return
	}
	b.answer(wire.Receipt{}, wire.CodeDuplicate) // so old that its offset is forgotten
}

// receipt is for a record that is committed at index or below it.
func (p *Partition) receipt(offset wire.Offset, term wire.Term, appendTimeMs int64, index wire.Index) wire.Receipt {
	return wire.Receipt{
		BaseOffset: offset, Epoch: uint32(term), AppendTimeMs: appendTimeMs, Replicas: uint8(p.proposer.Holders(index)),
		Synced: p.synced && offset >= p.weak,
	}
}

// answerLeader answers the batches that asked for the leader's memory only.
func (p *Partition) answerLeader(d *draft, base wire.Offset, term wire.Term, nowMs int64) {
	for i := range d.batches {
		b := &d.batches[i]
		if b.acks == wire.AcksLeader || invariants.Enabled && majoritiesIgnored.Load() {
			b.answer(wire.Receipt{BaseOffset: base, Epoch: uint32(term), AppendTimeMs: nowMs, Replicas: 1}, wire.CodeOK)
			b.receiver = nil
		}
		base += wire.Offset(b.info.RecordCount)
	}
}

// answer tells the sender of a batch the outcome.
func (b *placed) answer(r wire.Receipt, code wire.ErrorCode) {
	if b.acks != wire.AcksNone && b.receiver != nil {
		b.receiver.Appended(b.tag, r, code)
	}
}

// Apply takes one committed entry into the state and answers the senders whose
// batches it holds.
func (p *Partition) Apply(e Entry) {
	p.applied, p.appliedTerm = e.Index, e.Term
	p.state.groups.Term(e.Term)
	switch e.Kind {
	case wire.KindRecords:
		if e.Damaged {
			p.state.applyDamaged(e.BaseOffset, e.RecordCount)
			p.groups.feed.applied(log.Position{}, false, &e)
			return
		}
		p.state.applyRecords(e.BaseOffset, e.RecordCount, e.AppendTimeMs, e.Body)
		if p.groups.feed.on {
			at, known := p.log.BodyAt(e.Index, len(e.Body))
			p.groups.feed.applied(at, known, &e)
		}
		p.committed(e)
	case wire.KindControl:
		p.state.applyControl(e.Index, e.AppendTimeMs, e.Body, p.groups.effect)
		p.log.Trim(p.state.start)
		p.groups.applied(&e)
	}
}

// committed answers the pending entry that e is, if this leader proposed it.
func (p *Partition) committed(e Entry) {
	if len(p.pending) == 0 || p.term != e.Term || p.pending[0].base != e.BaseOffset {
		return
	}
	d := p.pending[0].draft
	p.pending = shift(p.pending)
	offset := e.BaseOffset
	receipt := p.receipt(offset, e.Term, e.AppendTimeMs, e.Index)
	for i := range d.batches {
		b := &d.batches[i]
		r := receipt
		r.BaseOffset, r.Synced = offset, p.synced && offset >= p.weak
		if b.info.ProducerID >= 0 {
			p.land(b.info.ProducerID, r)
		}
		r.Synced = r.Synced && b.acks == wire.AcksQuorum
		b.answer(r, wire.CodeOK)
		offset += wire.Offset(b.info.RecordCount)
	}
	p.account.free(d)
}

// land takes the oldest batch of a producer out of the overlay and answers the
// duplicates that waited for it.
func (p *Partition) land(id int64, r wire.Receipt) {
	o := p.overlay[id]
	if o == nil || len(o.batches) == 0 {
		return
	}
	r.Duplicate = true
	for _, w := range o.batches[0].also {
		w.receiver.Appended(w.tag, r, wire.CodeOK)
	}
	o.batches = shift(o.batches)
	if len(o.batches) == 0 {
		delete(p.overlay, id)
		if len(p.spare) < 64 {
			p.spare = append(p.spare, o)
		}
	}
}

func (p *Partition) newOverlay() *overlay {
	if n := len(p.spare); n > 0 {
		o := p.spare[n-1]
		p.spare = p.spare[:n-1]
		return o
	}
	return new(overlay)
}

// shift drops the first element and keeps the array.
func shift[T any](s []T) []T {
	copy(s, s[1:])
	clear(s[len(s)-1:])
	return s[:len(s)-1]
}

// withdraw takes the entry just proposed back: it is not in the log, and its
// offsets and sequences are free again.
func (p *Partition) withdraw(d *draft, data []byte, code wire.ErrorCode) {
	n := len(p.pending)
	if n == 0 || p.pending[n-1].draft != d {
		return // it was applied, or abandoned with the leadership
	}
	p.pending = p.pending[:n-1]
	p.account.give(int64(cap(data))) // not recycled: consensus may still have looked at it
	for i := len(d.batches) - 1; i >= 0; i-- {
		b := &d.batches[i]
		if o := p.overlay[b.info.ProducerID]; o != nil && len(o.batches) > 0 {
			last := len(o.batches) - 1
			for _, w := range o.batches[last].also {
				w.receiver.Appended(w.tag, wire.Receipt{}, code)
			}
			o.batches[last] = flying{}
			o.batches = o.batches[:last]
			if last == 0 {
				delete(p.overlay, b.info.ProducerID) // the applied table says what is next
			} else {
				before := &o.batches[last-1]
				o.epoch, o.next = before.epoch, addSequence(before.sequence, before.count)
			}
		}
		b.answer(wire.Receipt{}, code)
	}
	p.account.free(d)
}

// refuse answers a draft that was never proposed.
func (p *Partition) refuse(d *draft, r wire.Receipt, code wire.ErrorCode) {
	for i := range d.batches {
		d.batches[i].answer(r, code)
	}
	p.account.recycle(d.data)
	p.account.free(d)
}

// abandon drops what this leader has proposed: whether it commits is the next
// leader's to say. Senders resend under the same sequences and learn it then.
func (p *Partition) abandon(code wire.ErrorCode) {
	for _, e := range p.pending {
		for i := range e.draft.batches {
			e.draft.batches[i].answer(wire.Receipt{}, code)
		}
		p.account.free(e.draft)
	}
	clear(p.pending)
	p.pending = p.pending[:0]
	for id, o := range p.overlay {
		for _, f := range o.batches {
			for _, w := range f.also {
				w.receiver.Appended(w.tag, wire.Receipt{}, code)
			}
		}
		delete(p.overlay, id)
	}
}

// Refuse makes Append refuse further batches with code. Any goroutine.
func (p *Partition) Refuse(code wire.ErrorCode) {
	p.mailbox.close(code)
	p.groups.shut(code)
	p.fences.shut(code)
}

// Close answers everything that waits with code and refuses further batches.
func (p *Partition) Close(code wire.ErrorCode) {
	p.Refuse(code)
	p.groups.abandon(code)
	p.groups.reject(code)
	p.abandon(code)
	p.fences.reject(code)
	p.rejectWaiting(wire.Receipt{}, code)
}

// Idle reports whether nothing is waiting or on its way.
func (p *Partition) Idle() bool {
	return len(p.pending) == 0 && p.heldNext == len(p.held) && p.Waiting() == 0 && len(p.groups.controls) == 0
}

// Retain proposes to move the start of the partition if the policy allows it.
func (p *Partition) Retain(nowMs int64) {
	if p.retention == (Retention{}) {
		return
	}
	term, leading := p.proposer.Leading()
	if !leading {
		return
	}
	age, bytes := p.retention.Age, p.retention.Bytes
	if age == 0 {
		age = -1 // to the log, 0 is a limit that nothing meets
	}
	if bytes == 0 {
		bytes = -1
	}
	start, ok := p.log.RetentionPoint(nowMs, age, bytes)
	if held, holds := p.state.groups.Held(); holds && !p.full.Load() {
		start = min(start, held)
	}
	if !ok || start <= p.state.start {
		return
	}
	p.command(term, nowMs, commandTrim, binary.LittleEndian.AppendUint64(nil, uint64(start)))
}

// maxEraseRuns bounds the runs that one entry lets replicas give back.
const maxEraseRuns = 4096

// Erase proposes that replicas may give back the records of runs that State.Finished has
// named; the first ones if they are many. Only a leader does. It reports whether it did.
func (p *Partition) Erase(nowMs int64, runs []group.Span) bool {
	term, leading := p.proposer.Leading()
	if !leading || len(runs) == 0 {
		return false
	}
	payload := make([]byte, 0, min(len(runs), maxEraseRuns)*eraseRun)
	for _, r := range runs[:min(len(runs), maxEraseRuns)] {
		payload = binary.LittleEndian.AppendUint64(payload, uint64(r.From))
		payload = binary.LittleEndian.AppendUint64(payload, uint64(r.To))
	}
	return p.command(term, nowMs, commandErase, payload)
}

// command proposes one command, if there is room for it.
func (p *Partition) command(term wire.Term, nowMs int64, t commandType, payload []byte) bool {
	data := make([]byte, wire.EntryPrefixSize, wire.EntryPrefixSize+commandHeader+len(payload))
	data = appendCommand(data, t, payload)
	wire.PutEntryPrefix(data, wire.KindControl, 0, nowMs)
	if p.log.Reserve(wire.FrameSize(len(data)-wire.EntryPrefixSize)+ElectionRoom, false) != nil {
		return false // not now; the next check tries again
	}
	if term != p.term {
		return false // the owner has not had a turn in this term yet
	}
	c := new(control)
	p.groups.controls = append(p.groups.controls, c)
	if _, err := p.proposer.Propose(data); err != nil {
		p.groups.forget(c)
		return false
	}
	return true
}

// codeOf maps why an entry could not be proposed to what the sender is told.
func codeOf(err error) wire.ErrorCode {
	var code wire.ErrorCode
	switch {
	case errors.Is(err, log.ErrMemoryFull):
		return wire.CodeMemoryFull
	case errors.Is(err, log.ErrDiskFull):
		return wire.CodeDiskFull
	case errors.As(err, &code):
		return code
	}
	return wire.CodeUnavailable // or fenced: whoever asks again hears it
}
