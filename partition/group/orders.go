package group

// order is what an operator has asked for and what needs the whole group: nothing is
// given out until nothing is leased any more, then it is committed.
type order struct {
	command []byte
	done    func(error)
}

// command goes on with the order.
func (l *Leader) command() {}

// ordered ends the order, whose command is applied.
func (l *Leader) ordered() {}
