"""Predicts. (Public names are loaded when first used, so that importing stays cheap.)"""
