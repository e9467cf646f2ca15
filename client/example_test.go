package client_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

func Example() {
	ctx := context.Background()
	conn, err := client.Connect(ctx, "lockstep://127.0.0.1:7400")
	if err != nil {
		panic(err)
	}
	defer conn.Close()

	_, err = conn.CreateDestination(ctx, client.Destination{
		Name: "orders", Kind: client.Queue, Settings: client.Settings{Partitions: 4},
	})
	if err != nil && !errors.Is(err, wire.CodeAlreadyExists) {
		panic(err)
	}

	producer, err := conn.Producer(ctx, "orders")
	if err != nil {
		panic(err)
	}
	receipt, err := producer.Send(ctx, &client.Record{Key: []byte("customer 17"), Value: []byte("two coffees")})
	if err != nil {
		panic(err)
	}
	fmt.Println("stored in partition", receipt.Partition, "at offset", receipt.Offset)

	reader, err := conn.Reader(ctx, "orders", client.FromEarliest(), client.StopAtEnd())
	if err != nil {
		panic(err)
	}
	defer reader.Close()
	for record, err := range reader.Records(ctx) {
		if err != nil {
			panic(err)
		}
		fmt.Printf("%s: %s\n", record.Key, record.Value)
	}
}

// The outcome of a failed send says whether sending again can make a duplicate.
func ExampleSendError() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := client.Connect(ctx, "127.0.0.1:7400")
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	producer, err := conn.Producer(ctx, "orders")
	if err != nil {
		panic(err)
	}
	_, err = producer.Send(ctx, &client.Record{Value: []byte("one tea")})
	var failed *client.SendError
	switch {
	case err == nil:
	case errors.As(err, &failed) && failed.Outcome == client.NotSent:
		fmt.Println("not stored, send it again:", err)
	default:
		fmt.Println("stored or not, look before sending it again:", err)
	}
}

// SendFunc is for many records: it does not wait for answers and allocates nothing.
func ExampleProducer_SendFunc() {
	ctx := context.Background()
	conn, err := client.Connect(ctx, "127.0.0.1:7400")
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	producer, err := conn.Producer(ctx, "events", client.Compression(client.Zstd), client.Linger(5*time.Millisecond))
	if err != nil {
		panic(err)
	}
	done := func(_ client.Receipt, err error) {
		if err != nil {
			slog.Error("event lost", "error", err)
		}
	}
	for i := range 1_000_000 {
		if err := producer.SendFunc(ctx, &client.Record{Value: fmt.Appendf(nil, "event %d", i)}, done); err != nil {
			panic(err)
		}
	}
	if err := producer.Close(ctx); err != nil {
		panic(err)
	}
}

// Events tell what happens to the connection; calls go on by themselves.
func ExampleWithEvents() {
	conn, err := client.Connect(context.Background(), "a:7400,b:7400,c:7400", client.WithEvents(func(e client.Event) {
		switch e := e.(type) {
		case client.Connected:
			slog.Info("connected", "server", e.Address)
		case client.Disconnected:
			slog.Warn("disconnected", "server", e.Address, "error", e.Err)
		case client.TopologyChanged:
			slog.Info("topology changed", "epoch", e.Epoch)
		}
	}))
	if err != nil {
		panic(err)
	}
	defer conn.Close()
}
